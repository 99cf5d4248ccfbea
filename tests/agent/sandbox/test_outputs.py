"""What a job leaves behind may be anything."""

import hashlib
import os
import socket
from pathlib import Path

import pytest

from agent.sandbox import outputs
from agent.sandbox.outputs import OutputRefused
from tests.agent.sandbox.jobs import IS_ROOT, MIB, until

MOST = {"max_bytes": 10 * MIB, "max_files": 100}


@pytest.fixture
def job(place: Path) -> Path:
    """A work folder with an output folder in it."""
    (place / "job" / "output" / "checkpoint-3").mkdir(parents=True)
    return place / "job"


@pytest.fixture
def output(job: Path) -> Path:
    return job / "output" / "checkpoint-3"


def reason(job: Path, **most) -> str:
    with pytest.raises(OutputRefused) as refused:
        outputs.walk(job, "output/checkpoint-3", **(MOST | most))
    return str(refused.value)


def test_regular_files_are_listed_by_path_and_read_by_one_descriptor(job, output):
    (output / "model.safetensors").write_bytes(b"weights")
    (output / "tokenizer").mkdir()
    (output / "tokenizer" / "vocabulaire é.json").write_bytes(b"{}")
    (output / "empty").mkdir()
    found = outputs.walk(job, "output/checkpoint-3", **MOST)
    assert [file.path for file in found] == ["model.safetensors", "tokenizer/vocabulaire é.json"]
    assert [file.size for file in found] == [7, 2]
    fd = found[0].open()
    assert outputs.sha256(fd, 7) == hashlib.sha256(b"weights").hexdigest()
    assert os.read(fd, 100) == b"weights"
    os.close(fd)


def test_links_pipes_and_sockets_are_refused_by_name_without_opening_them(job, output):
    (output / "link").symlink_to("/etc/passwd")
    (output / "folder-link").symlink_to("/etc")
    os.mkfifo(output / "pipe")
    (output / "one").write_text("x")
    os.link(output / "one", output / "two")
    channel = socket.socket(socket.AF_UNIX)
    channel.bind(str(output / "socket"))
    channel.close()
    with pytest.raises(OutputRefused) as refused:
        outputs.walk(job, "output/checkpoint-3", **MOST)
    reasons = {refusal.name: refusal.reason for refusal in refused.value.refusals}
    assert reasons == {
        "'link'": "it is a symlink, not a regular file",
        "'folder-link'": "it is a symlink, not a regular file",
        "'pipe'": "it is a FIFO, not a regular file",
        "'one'": "it is a hard link: it has another name",
        "'two'": "it is a hard link: it has another name",
        "'socket'": "it is a socket, not a regular file",
    }


@pytest.mark.skipif(not IS_ROOT, reason="making a device node takes root")
def test_devices_are_refused(job, output):
    os.mknod(output / "disk", 0o60600, os.makedev(7, 250))
    assert reason(job) == "'disk': it is a device, not a regular file"


def test_a_sparse_terabyte_is_too_much(job, output):
    with open(output / "weights", "wb") as file:
        file.truncate(2**40)
    assert "1099511627776 bytes in all (0 on disk), 10485760 are allowed" in reason(job)


def test_what_a_file_takes_on_disk_counts_as_well(job, output):
    with open(output / "weights", "wb") as file:
        file.write(b"x" * MIB)
        os.posix_fallocate(file.fileno(), 0, 2 * MIB)
        file.truncate(10)
    found = outputs.walk(job, "output/checkpoint-3", **MOST)
    assert (found[0].size, found[0].allocated) == (10, 4096)
    with open(output / "reserved", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1)
        fallocate_keep_size(file.fileno(), 20 * MIB)
    assert "on disk" in reason(job)


def fallocate_keep_size(fd: int, size: int) -> None:
    """Blocks beyond the end of the file: apparent size stays, the disk is taken."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.fallocate(fd, 1, ctypes.c_long(0), ctypes.c_long(size)) == 0, ctypes.get_errno()


def test_too_many_files_are_too_many(job, output):
    for number in range(101):
        (output / f"file-{number}").touch()
    assert "more than 100 files and folders" in reason(job)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (b"red\x1b[31m", "its name has control characters"),
        (b"line\nbreak", "its name has control characters"),
        ("right\u202eleft".encode(), "its name has control characters"),
        (b"\xff\xfe", "its name is not UTF-8"),
    ],
)
def test_names_that_lie_are_refused_and_printed_harmlessly(job, output, name, why):
    with open(os.fsencode(output) + b"/" + name, "w"):
        pass
    words = reason(job)
    assert words.endswith(why)
    assert words.isascii()
    assert words.isprintable()


def test_folders_beyond_all_measure_are_refused(job, output):
    deep = output
    for _ in range(40):
        deep = deep / "d"
    deep.mkdir(parents=True)
    assert "more than 32 deep" in reason(job)


@pytest.mark.parametrize("step", ["output", "output/checkpoint-3"])
def test_a_symlink_on_the_way_leads_nowhere(job, output, step, place):
    elsewhere = place / "elsewhere"
    (elsewhere / "checkpoint-3").mkdir(parents=True)
    (elsewhere / "checkpoint-3" / "secret").write_text("the host's")
    (elsewhere / "secret").write_text("the host's")
    (job / step).rename(job / "moved")
    (job / step).symlink_to(elsewhere)
    assert "symlink" in reason(job)


def test_a_file_swapped_after_the_walk_is_not_opened(job, output, place):
    (place / "secret").write_text("weights")
    (output / "model").write_text("weights")
    (file,) = outputs.walk(job, "output/checkpoint-3", **MOST)
    (output / "model").rename(place / "away")
    (output / "model").symlink_to(place / "secret")
    with pytest.raises(OutputRefused, match="symlink"):
        file.open()
    (output / "model").unlink()
    os.mkfifo(output / "model")
    with pytest.raises(OutputRefused, match="FIFO"):
        file.open()
    (output / "model").unlink()
    (output / "model").write_text("another")
    with pytest.raises(OutputRefused, match="changed"):
        file.open()


def test_a_file_that_grows_or_shrinks_under_the_hash_is_refused(output):
    path = output / "model"
    path.write_text("weights")
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OutputRefused, match="longer"):
            outputs.sha256(fd, 3)
        with pytest.raises(OutputRefused, match="shorter"):
            outputs.sha256(fd, 30)
    finally:
        os.close(fd)


def test_finished_checkpoints_are_found_and_nothing_else(job, output):
    (job / "output" / "checkpoint-10").mkdir()
    (job / "output" / "checkpoint-20").symlink_to("/etc")
    (job / "output" / "notes").write_text("x")
    assert outputs.folders(job, "output") == ["checkpoint-10", "checkpoint-3"]
    assert outputs.folders(job, "none") == []
    assert outputs.folders(job, "output/notes") == []


def test_the_metrics_file_is_opened_only_if_it_is_one(job):
    with pytest.raises(FileNotFoundError):
        outputs.open_file(job, "metrics.jsonl")
    (job / "metrics.jsonl").symlink_to("/etc/passwd")
    with pytest.raises(OutputRefused, match="symlink"):
        outputs.open_file(job, "metrics.jsonl")
    (job / "metrics.jsonl").unlink()
    os.mkfifo(job / "metrics.jsonl")
    with pytest.raises(OutputRefused, match="FIFO"):
        outputs.open_file(job, "metrics.jsonl")
    with pytest.raises(OutputRefused):
        outputs.open_file(job, "../../etc/passwd")


def test_cleaning_removes_whatever_was_built_and_nothing_beside_it(place):
    folder, outside = place / "assignment", place / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    (folder / "job").mkdir(parents=True)
    (folder / "job" / "out").symlink_to(outside)
    (folder / "job" / "locked" / "inside").mkdir(parents=True)
    (folder / "job" / "locked" / "inside" / "file").write_text("x")
    for closed in (folder / "job" / "locked" / "inside", folder / "job" / "locked"):
        closed.chmod(0)
    os.mkfifo(folder / "job" / "pipe")
    here = os.open(folder / "job", os.O_DIRECTORY)
    for _ in range(3000):  # deeper than any path reaches, and than any recursion
        os.mkdir("d" * 50, dir_fd=here)
        below = os.open("d" * 50, os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    outputs.clean(folder)
    assert sorted(path.name for path in place.iterdir()) == ["outside"]
    assert (outside / "kept").exists()


def test_cleaning_what_is_not_there_is_fine(place):
    outputs.clean(place / "nothing")


@pytest.mark.skipif(not IS_ROOT, reason="giving files to another uid takes root")
def test_cleaning_does_not_care_who_owns_it(place):
    folder = place / "assignment"
    (folder / "job" / "theirs").mkdir(parents=True)
    for path in (folder / "job" / "theirs", folder / "job"):
        os.chown(path, 2_000_000_001, 2_000_000_001)
        path.chmod(0o500)
    outputs.clean(folder)
    until(lambda: not folder.exists())
