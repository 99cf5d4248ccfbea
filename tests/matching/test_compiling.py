"""Two processes compile the loops; what each has kept is brought together."""

from pathlib import Path

from scheduler.matching import compiling


def test_the_forms_of_a_loop_stay_with_their_index(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs" / "matching_1"
    for folder, loops in ((ours, ("alone.both-1",)), (theirs, ("alone.both-1", "bound.other-2"))):
        folder.mkdir(parents=True)
        for loop in loops:
            for ending in ("nbi", "1.nbc", "2.nbc"):
                (folder / f"{loop}.py311.{ending}").write_text(folder.name)
    (ours / "alone.both-1.py311.2.nbc").unlink()
    compiling._take_over(tmp_path / "theirs", ours)
    found = {path.name: path.read_text() for path in ours.iterdir()}
    assert found == {
        "alone.both-1.py311.nbi": "ours",
        "alone.both-1.py311.1.nbc": "ours",
        "bound.other-2.py311.nbi": "matching_1",
        "bound.other-2.py311.1.nbc": "matching_1",
        "bound.other-2.py311.2.nbc": "matching_1",
    }
