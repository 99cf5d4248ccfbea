"""The proof of hardware: an honest chain passes, every forgery that is drawn is found."""

from uuid import uuid4

import msgspec
import numpy as np
import pytest

from agent.benchmark import Chain, Engine
from agent.protocol import ProofTask, encode, proof_row
from suppliers import proof
from suppliers.proof import Size
from tests.suppliers.machine import Prover

SMALL = Size(n=64, links=3, segments=4)


@pytest.fixture
def task() -> ProofTask:
    return proof.make_task(uuid4(), SMALL)


def flaw(task: ProofTask, prover: Prover, cells: list[tuple[int, int]] | None = None) -> str:
    cells = cells or proof.draw_cells(task)
    return proof.flaw(task, prover.commit().roots, cells, prover.open(cells))


def test_an_honest_proof_passes(task):
    assert flaw(task, Prover(task)) == ""


def test_no_honest_proof_is_ever_refused():
    for n, links, segments in ((32, 1, 1), (32, 2, 5), (64, 5, 2), (128, 2, 3), (512, 8, 8)):
        task = proof.make_task(uuid4(), Size(n, links, segments))
        prover = Prover(task)
        every = [(segment, row) for segment in range(segments) for row in range(n)]
        assert proof.flaw(task, prover.commit().roots, every, prover.open(every)) == ""


def test_the_market_draws_the_same_matrices_as_the_protocol_says(task):
    for name in ("x", "b"):
        ours = proof.matrix(task, name, range(task.n))
        theirs = [[byte - 8 for byte in proof_row(task.seed, name, r, task.n)] for r in range(64)]
        assert np.array_equal(ours, np.array(theirs))


def test_the_rows_to_open_are_distinct_and_within_the_task(task):
    for _ in range(50):
        cells = proof.draw_cells(task)
        assert len(set(cells)) == proof.OPENED
        assert all(0 <= s < task.segments and 0 <= row < task.n for s, row in cells)


def test_a_single_changed_entry_is_found(task):
    for segment, row, entry in ((0, 0, 0), (1, 7, 63), (3, 63, 31)):
        prover = Prover(task)
        truth = prover.states[segment + 1][row, entry]
        prover.states[segment + 1][row, entry] = truth - 1 if truth > -8 else truth + 1
        assert "was not computed" in flaw(task, prover, [(segment, row)])


def test_half_of_the_rows_made_up_is_found(task):
    prover = Prover(task)
    for state in prover.states[1:]:
        state[::2] = np.random.default_rng(0).integers(-8, 9, state[::2].shape)
    assert flaw(task, prover, [(s, r) for s in range(4) for r in range(4)])


def test_jumping_ahead_with_powers_of_b_is_found(task):
    assert "was not computed" in flaw(task, Prover(task, cubes=False))


def test_a_proof_of_another_seed_is_found(task):
    other = Prover(proof.make_task(uuid4(), SMALL))
    assert "does not start from the seed" in flaw(task, other, [(0, 3)])
    assert "was not computed" in flaw(task, other, [(1, 3)])


def test_opening_other_rows_than_were_drawn_is_refused(task):
    prover = Prover(task)
    opening = prover.open([(1, 2), (2, 3)])
    assert "other rows" in proof.flaw(task, prover.commit().roots, [(1, 2), (2, 4)], opening)
    assert "other rows" in proof.flaw(task, prover.commit().roots, [(1, 2)], opening)


def test_a_right_row_that_was_not_committed_to_is_refused(task):
    prover, blank = Prover(task), Prover(task)
    for state in blank.states[1:]:
        state[:] = 0
    roots = blank.commit().roots
    late = prover.open([(1, 5)])
    assert "not the one committed to after" in proof.flaw(task, roots, [(1, 5)], late)


def test_a_row_that_starts_elsewhere_than_its_segment_is_refused(task):
    prover = Prover(task)
    honest = prover.open([(2, 5)]).rows[0]
    elsewhere = prover.open([(2, 6)]).rows[0]
    mixed = msgspec.structs.replace(
        elsewhere, row=5, after=honest.after, path_after=honest.path_after
    )
    opening = msgspec.structs.replace(prover.open([(2, 5)]), rows=[mixed])
    said = proof.flaw(task, prover.commit().roots, [(2, 5)], opening)
    assert "not the one committed to before" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"before": b"\x01" * 63}, "does not have 64 entries"),
        ({"after": b""}, "does not have 64 entries"),
        ({"before": b"\x7f" * 64}, "outside -8..8"),
        ({"path_after": []}, "wrong length"),
        ({"path_before": ["0" * 64] * 40}, "wrong length"),
    ],
)
def test_a_row_of_the_wrong_shape_is_refused(task, change, words):
    prover = Prover(task)
    opening = prover.open([(1, 1)])
    bent = msgspec.structs.replace(
        opening, rows=[msgspec.structs.replace(opening.rows[0], **change)]
    )
    assert words in proof.flaw(task, prover.commit().roots, [(1, 1)], bent)


def test_what_an_agent_computes_is_what_the_market_checks():
    """The agent's own chain, at the size that processors get."""
    task = proof.make_task(uuid4(), Size(n=512, links=8, segments=8))
    chain = Chain(task, Engine())
    cells = proof.draw_cells(task)
    opening = chain.open(cells)
    assert proof.flaw(task, chain.roots(), cells, opening) == ""
    assert len(encode(opening)) < 100_000
