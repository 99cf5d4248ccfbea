"""What a round reckons beside its own thread."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from scheduler.beside import Aside


def test_it_is_reckoned_once_whoever_begins_it() -> None:
    ran: list[int] = []
    with ThreadPoolExecutor(1) as beside:
        aside = Aside(beside, lambda: ran.append(1) or len(ran))
        for _ in range(3):
            aside.begin()
        assert aside.result() == aside.result() == 1


def test_nobody_reckons_what_nobody_begins() -> None:
    with ThreadPoolExecutor(1) as beside:
        Aside(beside, lambda: pytest.fail("it was not asked for"))


def test_what_goes_wrong_is_told_to_whoever_wants_the_result() -> None:
    def wrong() -> int:
        raise ValueError("it is wrong")

    with ThreadPoolExecutor(1) as beside:
        aside = Aside(beside, wrong)
        aside.begin()
        with pytest.raises(ValueError, match="it is wrong"):
            aside.result()
