"""What a stranger's job tells: taken in bounded pieces, finite, and fit to be shown."""

import json
import math
import os
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agent.protocol import MAX_MESSAGE, encode
from agent.tails import LogPlace, LogTail, MetricsTail, Quiet, clean, parse
from agent.telling import Outbox


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    return tmp_path / "job"


def _write(job: Path, data: bytes) -> None:
    with (job / "metrics.jsonl").open("ab") as file:
        file.write(data)


def test_lines_are_read_once_they_are_whole(job: Path):
    tail = MetricsTail(job, "metrics.jsonl")
    assert tail.read(0) == []
    _write(job, b'{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    assert [(point.step, point.values) for point in tail.read(1)] == [(1, {"loss": 2.5})]
    _write(job, b'ss": 2}\n')
    assert [point.values for point in tail.read(2)] == [{"loss": 2.0}]
    assert tail.read(3) == []
    later = MetricsTail(job, "metrics.jsonl", tail.offset)
    assert later.read(4) == []  # the next agent reads on where this one was


@pytest.mark.parametrize(
    "line",
    [
        b"", b"[]", b"1", b"nonsense", b'{"loss": 1}', b'{"step": -1}', b'{"step": 1.5}',
        b'{"step": true}', b'{"step": "1"}', b'{"step": null}', b"\xff\xfe", b'{"step": 1e999}',
        b"[" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_metrics_line_is_passed_over(line: bytes):
    assert parse(line) is None


def test_of_a_line_only_finite_numbers_with_plain_names_are_taken():
    told = {
        "step": 3, "loss": 1, "nan": math.nan, "inf": math.inf, "huge": 10**400, "text": "x",
        "yes": True, "none": None, "list": [1], "bell\x07": 1, "x" * 61: 1, "": 1,
    }  # fmt: skip
    point = parse(json.dumps(told).encode())
    assert point is not None
    assert (point.step, point.values) == (3, {"loss": 1.0})
    many = parse(json.dumps({"step": 1} | {f"v{n}": n for n in range(100)}).encode())
    assert many is not None
    assert len(many.values) == 32


@given(some.binary(max_size=200))
def test_no_line_is_an_error(line):
    parse(line)


def test_a_line_without_an_end_does_not_fill_us(job: Path):
    tail = MetricsTail(job, "metrics.jsonl")
    for _ in range(4):
        _write(job, b'{"step": 7, "a": "' + b"x" * 200_000)
        assert tail.read(0) == []
    _write(job, b'"}\n{"step": 1, "loss": 1}\n')
    points = []
    for now in range(5):
        points += tail.read(now)
    assert [point.step for point in points] == [1]
    assert tail.step == 1


def test_a_flood_of_lines_is_thinned_and_its_last_step_known(job: Path):
    tail = MetricsTail(job, "metrics.jsonl")
    _write(job, b"".join(b'{"step": %d, "loss": 1}\n' % step for step in range(5000)))
    points = tail.read(0)
    assert len(points) == 200
    assert tail.step == 4999
    _write(job, b'{"step": 5000, "loss": 1}\n')
    assert [point.step for point in tail.read(1)] == [5000]


def test_a_file_made_anew_is_read_from_its_start(job: Path):
    tail = MetricsTail(job, "metrics.jsonl")
    _write(job, b'{"step": 1, "loss": 1}\n{"step": 2, "loss": 1}\n')
    tail.read(0)
    (job / "metrics.jsonl").write_bytes(b'{"step": 3, "loss": 1}\n')
    assert [point.step for point in tail.read(1)] == [3]


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)]
)
def test_what_is_no_file_is_not_read(job: Path, make):
    make(job / "metrics.jsonl")
    assert MetricsTail(job, "metrics.jsonl").read(0) == []


def test_the_time_of_a_save_is_taken_from_the_job(job: Path):
    tail = MetricsTail(job, "metrics.jsonl")
    _write(job, b'{"step": 1, "save_s": 2.5}\n{"step": 2, "loss": 1}\n')
    tail.read(0)
    assert tail.save_s == 2.5


def _all(tail: LogTail) -> tuple[str, list[int]]:
    text, offsets = "", []
    while chunk := tail.read():
        text += chunk.text
        offsets.append(chunk.offset)
    return text, offsets


def test_output_is_followed_over_rotations(tmp_path: Path):
    log = tmp_path / "stdout.log"
    log.write_text("one\n")
    tail = LogTail(tmp_path, "stdout", LogPlace())
    assert _all(tail) == ("one\n", [0])
    with log.open("a") as file:
        file.write("two\n")
    log.rename(tmp_path / "stdout.log.1")
    log.write_text("three\n")
    assert _all(tail) == ("two\nthree\n", [4, 8])
    again = LogTail(tmp_path, "stdout", tail.place)
    assert _all(again) == ("", [])  # the next agent goes on
    with log.open("a") as file:
        file.write("four\n")
    assert _all(again) == ("four\n", [14])


def test_a_character_is_not_cut_in_two(tmp_path: Path):
    text = "€" * 10_000
    (tmp_path / "stdout.log").write_text(text, encoding="utf-8")
    assert _all(LogTail(tmp_path, "stdout", LogPlace()))[0] == text


def test_of_too_much_output_the_end_is_what_counts(tmp_path: Path):
    (tmp_path / "stdout.log").write_text("x" * 10**6 + "the end")
    text, offsets = _all(LogTail(tmp_path, "stdout", LogPlace()))
    assert text.endswith("the end")
    assert len(text) < 20_000
    assert offsets[0] > 900_000


def test_output_is_fit_to_be_shown():
    raw = b"\x1b[31mred\x1b[0m\x07 \x1b]0;title\x07a\r\nb\rc\x00\x85\xff\xe2\x80\xaed\te\n"
    assert clean(raw) == "red a\nb\nc\ufffd\ufffdd\te\n"


@given(some.binary())
def test_no_output_can_steer_a_terminal(data):
    assert all(
        letter in "\n\t" or letter.isprintable() or ord(letter) > 0x9F for letter in clean(data)
    )


def test_a_message_is_never_too_long(tmp_path: Path):
    (tmp_path / "stdout.log").write_bytes(b"\xff" * 10**6)
    (tmp_path / "stderr.log").write_bytes(b'"\\' * 10**6)
    outbox, job = Outbox(), UUID(int=1)
    for stream in ("stdout", "stderr"):
        tail = LogTail(tmp_path, stream, LogPlace())
        while outbox.takes_logs and (chunk := tail.read()):
            outbox.add_log(job, chunk)
    for step in range(3000):
        point = parse(json.dumps({"step": step} | {f"{n}" * 50: n for n in range(32)}).encode())
        assert point is not None
        outbox.add_point(job, 1, point)
    points, messages = 0, 0
    while samples := outbox.take():
        assert len(encode(samples)) <= MAX_MESSAGE
        points += len(samples.metrics)
        messages += 1
    assert points == 2000  # the oldest are forgotten
    assert messages > 10


def test_a_job_hangs_when_it_neither_steps_nor_computes():
    quiet = Quiet(hang_s=10)
    looks = {"cpu_s": 1.0, "gpu_percent": 0.0}
    assert not quiet.is_hung(0, step=1, **looks)
    assert not quiet.is_hung(9, step=1, **looks)
    assert quiet.is_hung(10, step=1, **looks)
    assert not quiet.is_hung(11, step=2, **looks)  # it went on
    assert not quiet.is_hung(20, step=2, cpu_s=2.0, gpu_percent=0)  # it computes
    assert not quiet.is_hung(29, step=2, cpu_s=2.0, gpu_percent=50)
    assert quiet.is_hung(40, step=2, cpu_s=2.1, gpu_percent=0)  # it hardly wakes up
