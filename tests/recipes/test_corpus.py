"""The demo's dataset: from sources on this machine, the same every time, honestly held out."""

import json
from pathlib import Path

import pytest

from marketplace.devstack import corpus


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, corpus.Summary]:
    folder = tmp_path_factory.mktemp("corpus")
    return folder, corpus.write(folder)


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_the_library_gives_thousands_of_pairs_and_a_tenth_is_held_out(
    written: tuple[Path, corpus.Summary],
) -> None:
    folder, summary = written
    train, held_out = rows(folder, corpus.TRAIN), rows(folder, corpus.HELD_OUT)
    assert (len(train), len(held_out)) == (summary.train, summary.held_out)
    assert len(train) > 2500
    assert 0.05 < len(held_out) / len(train) < 0.2
    assert all(row.keys() == {"prompt", "completion"} for row in train + held_out)


def test_nothing_held_out_is_trained_on(written: tuple[Path, corpus.Summary]) -> None:
    folder, _ = written
    train, held_out = rows(folder, corpus.TRAIN), rows(folder, corpus.HELD_OUT)
    assert held_out[0]["prompt"].startswith("What does shutil.rmtree(")
    assert not any(" shutil." in row["prompt"] for row in train)
    assert not {r["completion"] for r in train} & {r["completion"] for r in held_out}
    assert len({row["prompt"] for row in train + held_out}) == len(train) + len(held_out)


def test_writing_twice_writes_the_same(tmp_path: Path) -> None:
    library = Path(json.__file__).parent
    once, again = tmp_path / "once", tmp_path / "again"
    summary = corpus.write(once, library=library)
    assert corpus.write(again, library=library) == summary
    assert summary.train
    for name in (corpus.TRAIN, corpus.HELD_OUT):
        assert (once / name).read_bytes() == (again / name).read_bytes()


def test_sources_are_parsed_never_run(tmp_path: Path) -> None:
    library, ran = tmp_path / "lib", tmp_path / "ran"
    library.mkdir()
    (library / "trap.py").write_text(
        f"open({str(ran)!r}, 'w')\n"
        "def safe(path, *, now=None):\n    '''Remove a tree\n    of files. And more.'''\n"
        "def _hidden():\n    '''Nobody asks for this one.'''\n"
        "class Thing:\n    '''A thing that does something.'''\n"
        "    def act(self, x):\n        '''Act on x at once.'''\n"
    )
    (library / "broken.py").write_text("def (:\n")
    (library / "test").mkdir()
    (library / "test" / "t.py").write_text("def f():\n    '''Tests are left out.'''\n")
    assert [(p.prompt, p.completion) for p in corpus.read(library / "trap.py", library)] == [
        ("What does trap.safe(path, *, now=None) do?", "Remove a tree of files."),
        ("What is trap.Thing?", "A thing that does something."),
        ("What does trap.Thing.act(x) do?", "Act on x at once."),
    ]
    assert corpus.write(tmp_path / "out", library=library).modules == 1
    assert not ran.exists()


def test_a_python_without_sources_says_so(tmp_path: Path) -> None:
    with pytest.raises(corpus.CorpusError, match="install"):
        corpus.write(tmp_path / "out", library=tmp_path)
