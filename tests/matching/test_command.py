"""`python -m scheduler.matching`: books in files, by anybody, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "scheduler.matching", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_book_is_made_cleared_and_checked(tmp_path: Path) -> None:
    book, matches = tmp_path / "book.npz", tmp_path / "matches.npz"
    made = run("make", "--jobs", 30, "--nodes", 40, "--seed", 1, "--out", book)
    assert made.returncode == 0, made.stderr
    done = run("clear", book, "--out", matches)
    assert done.returncode == 0, done.stderr
    assert "of 30 jobs on" in done.stdout
    right = run("check", book, matches)
    assert right.returncode == 0, right.stdout + right.stderr
    assert right.stdout.startswith("right; book ")
    with np.load(matches) as archive:
        named = {name: archive[name] for name in archive.files}
    assert named["seconds"] > 0
    np.savez(matches, **{**named, "welfare": named["welfare"] + 1})
    wrong = run("check", book, matches)
    assert wrong.returncode == 1
    assert "welfare is" in wrong.stdout


def test_wrong_input_is_told_in_a_line(tmp_path: Path) -> None:
    missing = run("clear", tmp_path / "none.npz", "--out", tmp_path / "matches.npz")
    assert missing.returncode == 2
    assert "none.npz" in missing.stderr
    assert "Traceback" not in missing.stderr
    negative = run("make", "--jobs", -1, "--nodes", 4, "--seed", 1, "--out", tmp_path / "b.npz")
    assert negative.returncode == 2
    soon = run("clear", tmp_path / "b.npz", "--seconds", "soon", "--out", tmp_path / "m.npz")
    assert soon.returncode == 2
    assert "must be a number from 0 to 3600, not 'soon'" in soon.stderr
    (tmp_path / "book.npz").write_bytes(b"not a book")
    garbage = run("clear", tmp_path / "book.npz", "--out", tmp_path / "matches.npz")
    assert garbage.returncode == 2
    assert "is not a .npz file" in garbage.stderr


def test_whoever_only_checks_needs_no_compiler_and_no_framework() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(('numba', 'django', 'celery'))); "
    asks = "from scheduler.matching.__main__ import main; main(['verify', '--help'])"
    done = subprocess.run([sys.executable, "-c", blocked + asks], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ROUND.json" in done.stdout
