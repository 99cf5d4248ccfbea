"""Which of the things that a job writes are a checkpoint, and when one is whole."""

import io
import json
import os
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from agent import saves
from agent.sandbox import outputs, workspace
from agent.saves import Look

SECOND = 1_000_000_000


@pytest.fixture
def job(tmp_path: Path) -> Path:
    for tree in ("output", "work"):
        (tmp_path / tree).mkdir()
    return tmp_path


def look(*, after_s: float = 0, script: bool = True, **changes: object) -> Look:
    """So many seconds from now, by the clock that files have."""
    now_ns = time.time_ns() + round(after_s * SECOND)
    return replace(Look(script=script, since_ns=1, now_ns=now_ns), **changes)


def find(job: Path, how: Look) -> saves.Save | None:
    return saves.newest(job, how, after_ns=0)


def write(path: Path, data: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def torch_file() -> bytes:
    """What torch.save writes: a zip."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("data.pkl", b"x" * 1000)
    return made.getvalue()


def test_a_renamed_folder_is_whole_at_once(job: Path):
    write(job / "output/.draft/w")
    time.sleep(0.02)  # the kernel's clock for files is a coarse one
    (job / "output/.draft").rename(job / "output/checkpoint-7")
    found = find(job, look())
    assert found is not None
    assert (found.place, found.number) == ("output/checkpoint-7", 7)


def test_a_folder_that_is_written_in_place_must_have_come_to_rest(job: Path):
    write(job / "work/out/run-1/checkpoint-5/w")
    assert find(job, look()) is None
    assert find(job, look(after_s=2)) is None
    found = find(job, look(after_s=3.5))
    assert found is not None
    assert found.place == "work/out/run-1/checkpoint-5"


def test_trainers_folder_is_whole_with_its_last_file_and_not_before(job: Path):
    write(job / "work/results/checkpoint-5/model.safetensors")
    state = write(job / "work/results/checkpoint-5/trainer_state.json", b'{"global_step": 5, ')
    assert find(job, look(after_s=60)) is None  # cut off in the middle of it
    state.write_text(json.dumps({"global_step": 5}))
    assert find(job, look()) is not None


def test_what_says_that_it_is_unfinished_is_never_taken(job: Path):
    write(job / "work/results/checkpoint-5/model.safetensors")
    write(job / "work/results/checkpoint-5/checkpoint-is-incomplete.txt")
    assert find(job, look(after_s=60, orderly=True)) is None


def test_a_job_that_left_well_has_written_what_it_was_writing(job: Path):
    write(job / "work/checkpoint-5/w")
    assert find(job, look()) is None
    assert find(job, look(orderly=True)) is not None


def test_of_a_job_that_nobody_saw_die_only_what_speaks_for_itself_is_taken(job: Path):
    write(job / "work/checkpoint-5/w")
    assert find(job, look(after_s=60, torn=True)) is None
    write(job / "work/checkpoint-5/trainer_state.json", b"{}")
    assert find(job, look(torn=True)) is not None


def test_what_was_laid_there_for_the_job_is_not_its_own(job: Path):
    write(job / "work/results/checkpoint-5/trainer_state.json", b"{}")
    write(job / "work/model.pt", torch_file())
    since = time.time_ns() + SECOND
    assert find(job, look(after_s=60, since_ns=since)) is None
    laid = frozenset({"work/model.pt"})
    assert find(job, look(after_s=60, since_ns=since, restored=laid)) is None
    assert saves.leftovers(job, look(since_ns=since)) == []


def test_the_newest_counts_whatever_its_number(job: Path):
    write(job / "work/first/checkpoint-500/trainer_state.json", b"{}")
    time.sleep(0.02)
    write(job / "work/second/checkpoint-100/trainer_state.json", b"{}")
    found = find(job, look(after_s=2))
    assert found is not None
    assert found.place == "work/second/checkpoint-100"
    assert saves.newest(job, look(after_s=2), after_ns=found.at_ns) is None


@pytest.mark.parametrize("name", ["model.safetensors", "deep/model.safetensors"])
def test_what_is_being_removed_is_not_new_again(job: Path, name: str):
    old, new = job / "work/results/checkpoint-2", job / "work/results/checkpoint-4"
    for folder in (old, new):
        for path in (name, "trainer_state.json"):
            write(folder / path, b"{}")
        time.sleep(0.02)  # the kernel's clock for files is a coarse one
    sent = find(job, look())
    assert sent is not None
    (old / name).unlink()
    assert find(job, look()) == sent
    assert saves.newest(job, look(), after_ns=sent.at_ns) is None


def test_single_files_are_a_state_together_with_the_small_ones_beside_them(job: Path):
    for name in ("model_epoch_1.pt", "model_epoch_2.pt", "optimizer.pt"):
        write(job / "work/out" / name, torch_file())
        time.sleep(0.02)
    write(job / "work/out/progress.json", b'{"epoch": 2}')
    write(job / "work/train.json", b"the project's own")
    found = find(job, look(after_s=1.5))
    assert found is not None
    assert (found.place, found.number) == ("work", None)
    names = sorted(file.path for file in found.files)
    assert names == ["out/model_epoch_2.pt", "out/optimizer.pt", "out/progress.json"]


def test_a_file_that_is_cut_off_is_no_checkpoint(job: Path):
    write(job / "work/ckpt.pt", torch_file()[:-30])
    assert find(job, look(after_s=60, orderly=True)) is None


def test_a_single_file_that_is_written_over_while_it_is_sent_is_sent_as_it_was(job: Path):
    path = write(job / "work/ckpt.pt", torch_file())
    found = find(job, look(after_s=1.5))
    assert found is not None
    with saves.held(job, found, job, most_bytes=10**6, most_files=10) as [(name, size, opened)]:
        path.write_bytes(b"another")
        fd = opened()
        assert (name, os.pread(fd, size + 1, 0)) == ("ckpt.pt", torch_file())
        os.close(fd)


def test_a_folder_that_is_removed_while_it_is_sent_is_still_sent(job: Path):
    path = write(job / "work/checkpoint-1/w")
    found = find(job, look(after_s=4))
    assert found is not None
    with saves.held(job, found, job, most_bytes=10**6, most_files=10) as [(_, size, opened)]:
        path.unlink()
        fd = opened()
        assert os.pread(fd, size, 0) == b"weights"
        os.close(fd)


def test_a_recipe_saves_in_its_output_folder_and_nowhere_else(job: Path):
    write(job / "work/checkpoint-9/w")
    write(job / "output/ckpt.pt", torch_file())
    assert find(job, look(after_s=60, script=False)) is None
    write(job / "output/checkpoint-3/w")
    assert find(job, look(script=False)) is None  # a recipe's, too, may be written in place
    assert find(job, look(script=False, after_s=4)) is not None


def test_what_a_script_has_left_is_its_result_but_for_old_checkpoints_and_caches(job: Path):
    for path in (
        "work/results/checkpoint-5/w", "work/results/checkpoint-10/w", "work/model/weights.bin",
        "work/__pycache__/x.pyc", "work/.git/config", "output/scores.csv",
    ):  # fmt: skip
        write(job / path)
    os.symlink("/etc/passwd", job / "work/link")
    names = [name for name, _ in saves.leftovers(job, look())]
    assert names == ["model/weights.bin", "results/checkpoint-10/w", "scores.csv"]


def test_trainers_own_notes_become_a_curve(job: Path):
    history = [{"loss": 2.5, "step": 1}, {"eval_loss": 2.0, "step": 2}, {"step": "x"}, "no"]
    write(
        job / "work/checkpoint-2/trainer_state.json",
        json.dumps({"max_steps": 9, "log_history": history}).encode(),
    )
    found = find(job, look(after_s=2))
    assert found is not None
    points = saves.curve(job, found)
    assert [(point.step, point.values) for point in points] == [
        (1, {"loss": 2.5, "total_steps": 9.0}), (2, {"eval_loss": 2.0, "total_steps": 9.0}),
    ]  # fmt: skip


def test_what_was_laid_back_and_not_written_again_still_belongs_to_the_state(job: Path):
    write(job / "work/best.pt", torch_file())
    write(job / "work/base.pt", torch_file())
    time.sleep(0.02)
    since = time.time_ns()
    time.sleep(0.02)
    write(job / "work/last.pt", torch_file())
    found = find(job, look(after_s=2, since_ns=since, restored=frozenset({"work/best.pt"})))
    assert found is not None
    assert sorted(file.path for file in found.files) == ["best.pt", "last.pt"]


def test_a_copy_has_the_holes_of_its_file(job: Path):
    path = write(job / "work/ckpt.pt", torch_file()[:100])
    with path.open("r+b") as file:
        file.seek(64 << 20)
        file.write(torch_file())
    found = find(job, look(after_s=1.5))
    assert found is not None
    assert found.files[0].allocated < 1 << 20
    with saves.held(job, found, job, most_bytes=10**9, most_files=10) as [(_, size, opened)]:
        fd = opened()
        info = os.fstat(fd)
        assert (size, info.st_size) == (path.stat().st_size,) * 2
        assert info.st_blocks * 512 < 1 << 20
        assert os.pread(fd, size, 64 << 20) == torch_file()
        os.close(fd)


@pytest.mark.parametrize(
    ("most_bytes", "most_files", "words"),
    [(100, 10, "100 are allowed"), (10**6, 1, "2 files, and 1 are taken")],
)
def test_more_than_a_job_may_send_is_not_even_copied(job: Path, most_bytes, most_files, words):
    for name in ("a.pt", "b_model.pt"):
        write(job / "work" / name, torch_file())
    found = find(job, look(after_s=1.5))
    assert found is not None
    with (
        pytest.raises(outputs.OutputRefused, match=words),
        saves.held(job, found, job, most_bytes=most_bytes, most_files=most_files),
    ):
        pass


def test_nothing_is_copied_where_the_disk_has_no_room_for_it(job: Path):
    path = write(job / "work/ckpt.pt", torch_file()[:100])
    with path.open("r+b") as file:
        file.seek(workspace.free_bytes(job))
        file.write(torch_file())
    found = find(job, look(after_s=1.5))
    assert found is not None
    with (
        pytest.raises(outputs.OutputRefused, match="no room to copy"),
        saves.held(job, found, job, most_bytes=2**60, most_files=10),
    ):
        pass
