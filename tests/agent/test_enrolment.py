"""How a machine becomes a node, and every way in which it does not."""

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from agent import config, enrolment, protocol
from agent.config import Config, State, StateError
from agent.enrolment import NotEnrolled
from tests.agent import node as nodes
from tests.agent.conftest import spec
from tests.agent.market import Market

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fresh(tmp_path: Path) -> State:
    it = config.open_state(tmp_path / "fresh")
    it.make()
    return it


def _enrol(state: State, market: str, token: str = "good-token") -> Config:
    inventory = nodes.machine(state).inventory
    settings, fingerprint = enrolment.enrol(
        state, market=market, token=token, name="node", inventory=inventory
    )
    assert fingerprint == enrolment.fingerprint_of(state)
    return settings


def test_a_token_and_a_new_key_make_a_node(market: Market, fresh: State):
    settings = _enrol(fresh, market.url)
    assert config.load(fresh) == settings
    assert settings.node in market.nodes
    key = config.load_key(fresh).public_key().public_bytes_raw()
    assert market.nodes[settings.node] == key
    assert enrolment.fingerprint_of(fresh) == protocol.fingerprint(key)


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("no-token", "there is no such enrolment token"),
        ("used-token", "used up; make a new one"),
        ("old-token", "has expired; make a new one"),
    ],
)
def test_a_token_that_is_not_good_is_refused_with_the_reason(
    market: Market, fresh: State, token: str, words: str
):
    with pytest.raises(NotEnrolled, match=words):
        _enrol(fresh, market.url, token)
    assert not fresh.config.exists()
    assert _enrol(fresh, market.url)  # and the next attempt succeeds


def test_a_token_is_good_once(market: Market, fresh: State, tmp_path: Path):
    _enrol(fresh, market.url)
    other = config.open_state(tmp_path / "other")
    other.make()
    with pytest.raises(NotEnrolled, match="there is no such"):
        _enrol(other, market.url)


def test_a_folder_holds_one_node(market: Market, fresh: State):
    _enrol(fresh, market.url)
    market.tokens.add("another")
    with pytest.raises(StateError, match="holds a node already"):
        _enrol(fresh, market.url, "another")


def test_a_market_that_is_not_there_is_said(fresh: State):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(NotEnrolled, match="does not answer"):
        _enrol(fresh, f"http://127.0.0.1:{port}")


def test_an_address_that_is_no_agents_is_said(market: Market, fresh: State, monkeypatch):
    monkeypatch.setattr(market.endpoints, "enrol", lambda request: (404, b"<html>not found</html>"))
    with pytest.raises(NotEnrolled, match="copy the whole command"):
        _enrol(fresh, market.url)


def test_an_answer_that_is_nonsense_is_said(market: Market, fresh: State, monkeypatch):
    monkeypatch.setattr(market.endpoints, "enrol", lambda request: (201, b"{}"))
    with pytest.raises(NotEnrolled, match="not of this protocol"):
        _enrol(fresh, market.url)


def test_a_market_that_names_another_key_is_not_trusted(market: Market, fresh: State, monkeypatch):
    monkeypatch.setattr(market.endpoints, "enrol", lambda request: (201, market.admit(b"k" * 32)))
    with pytest.raises(NotEnrolled, match="another key"):
        _enrol(fresh, market.url)
    assert not fresh.config.exists()


# The command line, as a person uses it.


def _agent(*words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "agent", *map(str, words)]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run"], "holds no node yet"),
        (["drain"], "holds no node yet"),
        (["enroll", "--market", "http://m.example", "--token", "t"], "use https"),
    ],
)
def test_what_its_user_can_mend_is_said_in_a_line(tmp_path: Path, words: list[str], said: str):
    done = _agent(*words, "--state", tmp_path / "state")
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_from_enrolment_to_the_owner_having_the_machine_back(market: Market, tmp_path: Path):
    where = tmp_path / "state"
    done = _agent(
        "enroll", "--market", market.url, "--token", "good-token", "--name", "n", "--yes",
        "--state", where, "--unsafe-no-sandbox",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    state = config.open_state(where)
    assert enrolment.fingerprint_of(state) in done.stdout
    assert stat.S_IMODE(state.key.stat().st_mode) == 0o600
    argv = [sys.executable, "-m", "agent", "run", "--state", where, "--unsafe-no-sandbox"]
    with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            market.wait(lambda: market.hellos)
            second = _agent("run", "--state", where)
            assert second.returncode == 1
            assert "already runs with" in second.stderr
            _drained(market, state)
        finally:
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "Traceback" not in said


def _drained(market: Market, state: State) -> None:
    hello = market.hellos[-1]
    assert hello.inventory.sandbox.harmful == 0 or os.getuid() != 0
    code = b"import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(75))\ntime.sleep(1000)"
    script = market.offer({"main.py": code}, "script")
    device = hello.inventory.devices[0].uuid
    job: UUID = market.want(spec(script, devices=[device]))
    market.wait(lambda: market.state(job) == "running")
    with subprocess.Popen(
        [sys.executable, "-m", "agent", "drain", "--state", state.root],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    ) as drain:  # fmt: skip
        market.wait(lambda: market.last().owner_why == "owner asked to drain")
        market.drain(job, "reclaimed", 30)  # as the market answers
        market.wait(lambda: market.settled(job))
        market.unwant(job)
        said, _ = drain.communicate(timeout=60)
    assert drain.returncode == 0
    assert f"Waiting for job {job}" in said
    assert "Nothing runs" in said
    assert _agent("drain", "--end", "--state", state.root).returncode == 0
    market.wait(lambda: not market.last().owner_busy)
