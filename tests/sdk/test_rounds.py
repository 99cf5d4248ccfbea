"""`gridloom rounds`: a round verified, and a row proven, from a terminal of its own."""

from dataclasses import asdict, replace
from datetime import timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buyers.sdk import proofs as sdk
from buyers.sdk.round_shapes import Proof
from marketplace.core.money import MICRO
from marketplace.models import Scope
from scheduler import archive, clearing
from scheduler.matching import proofs
from scheduler.matching.proofs import Tree
from scheduler.models import Round
from tests import world
from tests.buyers.conftest import key_of
from tests.sdk.test_cli import environment, gridloom  # noqa: F401 (fixtures, by their names)

OF = {"round": "0" * 32, "at": "2026-11-24T12:00:00Z"}


@pytest.fixture
def job(buyer, node, today, s3):
    """The buyer's, placed by a round."""
    world.listening(today)
    made = world.job(buyer, now=today)
    assert clearing.clear_market(now=today) == 1
    archive.publish()
    return made


def as_sdk(proof):
    return msgspec.convert({**asdict(proof), **OF}, Proof, strict=False)


@given(st.integers(1, 40), st.data())
@settings(deadline=None)
def test_the_sdk_and_the_market_agree_on_every_proof_and_on_every_change(leaves, data):
    """Two that were written apart; the market's is held against RFC 6962 itself."""
    content = [bytes([n]) * 16 + b"row" for n in range(leaves)]
    proof = proofs.prove(Tree(content), content, data.draw(st.integers(0, leaves - 1)))
    assert sdk.holds(as_sdk(proof))
    hashes = st.sampled_from([*proof.path, proof.root])
    changed = replace(
        proof,
        index=data.draw(st.integers(-1, leaves)),
        leaves=data.draw(st.integers(0, leaves + 1)),
        path=data.draw(st.one_of(st.just(proof.path), st.lists(hashes, max_size=7))),
        row=data.draw(st.sampled_from(["row", "raw"])),
    )
    assert sdk.holds(as_sdk(changed)) == proofs.holds(changed)


def test_a_row_is_proven_against_the_root_that_was_noted(gridloom, job, node, tmp_path):  # noqa: F811
    kept = tmp_path / "proof.json"
    said = gridloom("rounds", "prove", str(job.pk), "--save", str(kept))
    round = Round.objects.select_related("record").get()
    assert '"job_limit"' in said
    assert f"It stood in the round {round.pk}" in said
    assert sdk.holds(msgspec.json.decode(kept.read_bytes(), type=Proof))
    refused = gridloom("rounds", "prove", str(job.pk), "--root", "0" * 64, code=1)
    assert "does not lead to the root" in refused
    key = key_of(node.node.site.org, Scope.SUPPLY)
    theirs = gridloom("rounds", "prove", str(node.node.pk), "--node", GRIDLOOM_KEY=key)
    assert '"node_ask"' in theirs


def test_a_released_round_is_fetched_and_verified_by_anybody(
    gridloom, environment, job, today, tmp_path,  # noqa: F811
):  # fmt: skip
    round = Round.objects.get()
    early = gridloom("rounds", "verify", str(round.pk), code=1)
    assert "they are public from" in early
    archive.release(now=today + timedelta(days=7))
    folder = tmp_path / "round"
    # As a stranger, who has no account and names the market by its address.
    market = environment["GRIDLOOM_URL"]
    nowhere = {"GRIDLOOM_URL": "", "GRIDLOOM_KEY": ""}
    said = gridloom(
        "rounds", "verify", str(round.pk), "--folder", str(folder), "--market", market, **nowhere
    )
    assert "right; root" in said
    assert sorted(path.name for path in folder.iterdir()) == [
        "BOOK.npz",
        "MATCHES.npz",
        "ROUND.json",
    ]
    Round.objects.update(welfare=MICRO)
    wrong = gridloom("rounds", "verify", str(round.pk), "--folder", str(folder), code=2)
    assert "welfare is" in wrong
