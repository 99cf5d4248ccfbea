"""Secrets: asked for at the start, given as variables, and found nowhere afterwards."""

import re
from pathlib import Path

import pytest

from agent.config import State
from agent.sandbox.logs import Mask
from tests.agent import node as nodes
from tests.agent.conftest import spec
from tests.agent.market import Market

VALUE = "hf_0123456789abcdef"
USES = b"""
import os, sys, time
token = os.environ["HF_TOKEN"]
print("token", len(token), token, flush=True)
sys.stderr.write(token[:7]); sys.stderr.flush(); time.sleep(0.3)
sys.stderr.write(token[7:] + " and on\\n")
print(token[:5])
"""


@pytest.fixture
def device(state: State) -> str:
    return nodes.machine(state).inventory.devices[0].uuid


async def test_a_job_has_its_secrets_and_nothing_else_has_them(
    market: Market, node: State, device: str
):
    market.secrets = {"HF_TOKEN": VALUE, "OTHER": "not asked for"}
    script = market.offer({"main.py": USES}, "script")
    job = market.want(spec(script, devices=[device], secrets=["HF_TOKEN"]))
    status = await market.until(lambda: market.settled(job))
    [logs] = market.sent("log")
    assert status.exit.code == 0, logs.files
    assert logs.files["stdout.log"] == b"token 19 [HF_TOKEN]\nhf_01\n"
    assert logs.files["stderr.log"] == b"[HF_TOKEN] and on\n"
    assert VALUE not in "".join(chunk.text for chunk in market.logs)
    assert _files_with(node.root, VALUE) == []


async def test_a_node_that_gets_no_secrets_runs_no_job_that_needs_them(
    market: Market, node: State, device: str
):
    market.secrets = None
    script = market.offer({"main.py": USES}, "script")
    job = market.want(spec(script, devices=[device], secrets=["HF_TOKEN"]))
    status = await market.until(lambda: market.settled(job))
    assert (status.exit.why, status.running_ms) == ("secret", 0)
    assert "not to such a site" in status.detail


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_a_secret_is_masked_wherever_a_read_ends(size: int):
    mask = Mask({"A": "secret", "LONGER": "secretive", "EMPTY": ""})
    text = b"a secret, a secretive secret; secre, sesecret s"
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    shown = b"".join(map(mask, parts)) + mask.rest()
    assert b"secret" not in shown
    assert re.sub(rb"\[(A|LONGER)\](ive)?", b"*", shown) == b"a *, a * *; secre, se* s"


def test_what_may_be_a_long_secret_waits_and_is_compared_in_linear_time():
    """Trying every end of every read would compare 10 GB here."""
    secret = "a" * 100_000 + "b"
    mask = Mask({"LONG": secret})
    shown = b"".join(mask(b"a" * 1000) for _ in range(200))
    assert shown == b"a" * 100_000
    assert mask(b"b.") == b"[LONG]."
    assert mask.rest() == b""


async def test_more_secrets_than_a_log_is_searched_for_are_refused(
    market: Market, node: State, device: str
):
    market.secrets = {"HF_TOKEN": "x" * 300_000}
    script = market.offer({"main.py": USES}, "script")
    job = market.want(spec(script, devices=[device], secrets=["HF_TOKEN"]))
    status = await market.until(lambda: market.settled(job))
    assert (status.exit.why, status.running_ms) == ("secret", 0)
    assert "shorter ones" in status.detail


def _files_with(root: Path, text: str) -> list[Path]:
    return [
        path for path in root.rglob("*") if path.is_file() and text.encode() in path.read_bytes()
    ]
