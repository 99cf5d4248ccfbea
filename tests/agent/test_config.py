"""The state folder: one node, one key that nobody else reads, one agent at a time."""

import json
import stat
from pathlib import Path
from uuid import uuid4

import pytest

from agent import config
from agent.config import Config, State, StateError, checked_url


@pytest.fixture
def state(tmp_path: Path) -> State:
    it = config.open_state(tmp_path / "state")
    it.make()
    return it


def _saved(state: State) -> Config:
    it = Config(
        market="https://market.example",
        node=uuid4(),
        name="node",
        server="market",
        agents_url="https://agents.example",
        market_key=b"k" * 32,
    )
    config.save(state, it)
    return it


def test_the_key_is_its_owners_alone(state: State):
    key = config.make_key(state)
    assert stat.S_IMODE(state.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.root.stat().st_mode) == 0o700
    assert config.make_key(state).private_bytes_raw() == key.private_bytes_raw()


def test_a_key_that_others_can_read_is_refused(state: State):
    config.make_key(state)
    state.key.chmod(0o644)
    with pytest.raises(StateError, match="others can read"):
        config.load_key(state)


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\n"])
def test_what_is_no_key_is_said(state: State, content: bytes):
    config.write_private(state.key, content)
    with pytest.raises(StateError, match="is not a key"):
        config.load_key(state)


def test_what_was_saved_is_loaded(state: State):
    assert _saved(state) == config.load(state)
    assert stat.S_IMODE(state.config.stat().st_mode) == 0o600


def test_a_folder_without_a_node_says_how_to_enrol(state: State):
    with pytest.raises(StateError, match="agent enroll"):
        config.load(state)


def test_a_slip_in_the_config_is_named(state: State):
    _saved(state)
    told = json.loads(state.config.read_text())
    told["owner"]["windows"] = [{"days": ["monday"], "start": "08:00", "end": "09:00"}]
    state.config.write_text(json.dumps(told))
    with pytest.raises(StateError, match="monday"):
        config.load(state)


def test_two_agents_never_share_a_folder(state: State):
    assert not config.agent_runs(state)
    with config.only_agent(state):
        assert config.agent_runs(state)
        with pytest.raises(StateError, match="already runs with"), config.only_agent(state):
            pass
    with config.only_agent(state):
        pass


def test_a_folder_that_can_not_be_made_is_said(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="--state"):
        config.open_state(tmp_path / "file" / "state").make()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8001/", "https://market.example", "http://[::1]"]
)
def test_an_address_is_taken_if_it_is_safe(url: str):
    assert checked_url(url) == url.rstrip("/")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://market.example", "use https"),
        ("market.example", "must look like"),
        ("ftp://market.example", "must look like"),
        ("https://", "must look like"),
        ("", "must look like"),
    ],
)
def test_any_other_is_refused(url: str, words: str):
    with pytest.raises(StateError, match=words):
        checked_url(url)
