"""Jobs' own environments: built once in a sandbox from wheels by their hashes, then bound."""

import asyncio
import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from agent import config, orders, packages
from agent.config import Network, State
from agent.making import NotMade, Shelves
from agent.protocol import Packages
from agent.sandbox import bubblewrap
from buyers import requirements
from tests.agent import node as nodes
from tests.agent.conftest import spec
from tests.agent.market import Market
from tests.index import Index, served

USES = b"""
import shutil, subprocess, sys, importlib.util as found
import greeting
print(greeting.hello(), sys.prefix != sys.base_prefix, found.find_spec("transformers"))
print("torch", bool(found.find_spec("torch")), flush=True)
print(subprocess.run(["greeting-says"], capture_output=True, text=True).stdout.strip())
try: open(greeting.__file__, "a")
except OSError: print("read-only")
"""
CODE = "def hello(): return 'hello from the wheel'\ndef main(): print('said', hello())\n"
TORCH = nodes.TRAINING.shown.packages["torch"].partition("+")[0]


@pytest.fixture
def index() -> Iterator[Index]:
    with served(Index()) as it:
        yield it


@pytest.fixture
def state(state: State) -> State:
    """Its owner lets builds reach this machine's own loopback, where the tests' index is."""
    network = Network(allow=["127.0.0.0/8"])
    config.save(state, msgspec.structs.replace(config.load(state), network=network))
    return state


@pytest.fixture
def device(state: State) -> str:
    return nodes.machine(state).inventory.devices[0].uuid


def lock(index: Index, *lines: str, torch: str = "", python: str = "3.11") -> Packages:
    text = "".join(f"{line}\n" for line in lines)
    return Packages(
        sha256=hashlib.sha256(text.encode()).hexdigest(), text=text, python=python, torch=torch,
        index=index.url, hosts=[index.host], count=len(lines), bytes=2000,
    )  # fmt: skip


async def test_a_job_runs_in_its_own_environment_built_once(
    market: Market, node: State, device: str, index: Index
):
    sha = index.add("greeting", "2.1", code=CODE)
    wanted = lock(index, f"greeting==2.1 --hash=sha256:{sha}", torch=TORCH)
    script = market.offer({"main.py": USES}, "script")
    for _ in range(2):
        job = market.want(spec(script, devices=[device], packages=wanted))
        status = await market.until(lambda: market.settled(job))  # noqa: B023
        logs = market.sent("log")[-1].files
        assert status.exit.code == 0, logs
        assert logs["stdout.log"].decode().splitlines() == [
            "hello from the wheel True None",  # nothing else of the node's own is seen
            "torch True",
            "said hello from the wheel",
            "read-only",
        ]
        market.unwant(job)
    assert sum(path.endswith(".whl") for path in index.gets) == 1
    built = node.environments / "orgs" / str(UUID(int=7)) / wanted.sha256
    assert built.is_dir()
    assert list((node.environments / "building").iterdir()) == []


async def test_no_package_runs_at_its_installation_or_takes_pythons_place(
    market: Market, node: State, device: str, index: Index
):
    more = {
        "greedy.pth": "import sys; sys.greedy = True; open(sys.prefix + '/ran', 'w')\n",
    }
    sha = index.add("greedy", more=more)
    wanted = lock(index, f"greedy==1.0 --hash=sha256:{sha}")
    script = market.offer({"main.py": b"import greedy, sys; print(sys.greedy)"}, "script")
    job = market.want(spec(script, devices=[device], packages=wanted))
    status = await market.until(lambda: market.settled(job))
    assert status.exit.code == 0, status.detail
    logs = market.sent("log")[-1].files
    assert logs["stdout.log"] == b"True\n"  # in the job itself it runs, as everywhere
    built = node.environments / "orgs" / str(UUID(int=7)) / wanted.sha256
    assert not (built / "ran").exists()
    ours = bubblewrap.python_of(nodes.TRAINING.folders[0])
    for name in ("python", "python3", "python3.11"):
        assert os.readlink(built / "bin" / name) == ours


def test_whatever_stands_there_as_python_is_replaced(tmp_path: Path):
    inside = tmp_path / "env" / "bin"
    inside.mkdir(parents=True)
    (inside / "python").write_text("#!/bin/sh\n")
    (inside / "python3").symlink_to("/job/mine")
    packages._keep(tmp_path / "env", tmp_path / "kept" / "env", "/usr/bin/python3")
    found = {path.name: os.readlink(path) for path in (tmp_path / "kept/env/bin").iterdir()}
    assert found == {"python": "/usr/bin/python3", "python3": "/usr/bin/python3"}


def test_what_is_no_folder_of_its_own_is_not_kept(tmp_path: Path):
    away = tmp_path / "away"
    (away / "bin").mkdir(parents=True)
    (tmp_path / "env").symlink_to(away)
    with pytest.raises(NotMade) as refused:
        packages._keep(tmp_path / "env", tmp_path / "kept" / "env", "/usr/bin/python3")
    assert refused.value.why == "environment"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "bin").symlink_to(away / "bin")
    with pytest.raises(NotMade):
        packages._keep(tmp_path / "other", tmp_path / "kept" / "other", "/usr/bin/python3")
    assert list((away / "bin").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "why", "words"),
    [
        ("hash", "environment", "Hash mismatch"),
        ("gone", "environment", "could not be installed"),
        ("away", "start_failed", "could not be installed"),
    ],
)
async def test_a_lock_at_fault_and_an_index_that_is_away_are_told_apart(
    market: Market, node: State, device: str, index: Index, change: str, why: str, words: str
):
    sha = index.add("greeting", "2.1", code=CODE)
    wanted = lock(index, f"greeting==2.1 --hash=sha256:{'0' * 64 if change == 'hash' else sha}")
    if change == "gone":
        index.files.clear()
        index.add("greeting", "1.0")
    index.is_away = change == "away"
    script = market.offer({"main.py": USES}, "script")
    job = market.want(spec(script, devices=[device], packages=wanted))
    status = await market.until(lambda: market.settled(job))
    assert (status.exit.why, status.running_ms) == (why, 0), status.detail
    assert words in status.detail
    assert market.claims == []


async def test_a_build_that_takes_too_long_is_its_packages_fault(
    market: Market, node: State, device: str, index: Index
):
    sha = index.add("greeting", "2.1", code=CODE)
    wanted = lock(index, f"greeting==2.1 --hash=sha256:{sha}")
    script = market.offer({"main.py": USES}, "script")
    index.answers.clear()
    try:
        job = market.want(spec(script, devices=[device], packages=wanted, start_timeout_s=6.0))
        status = await market.until(lambda: market.settled(job))
    finally:
        index.answers.set()
    assert status.exit.why == "environment", status.detail
    assert "its 1 packages took longer than" in status.detail
    assert list((node.environments / "building").iterdir()) == []


async def test_a_package_that_is_called_like_a_fault_of_the_network_is_none(
    market: Market, node: State, device: str, index: Index
):
    wanted = lock(index, f"connection-timed-out==1.0 --hash=sha256:{'0' * 64}")
    script = market.offer({"main.py": USES}, "script")
    job = market.want(spec(script, devices=[device], packages=wanted))
    status = await market.until(lambda: market.settled(job))
    assert status.exit.why == "environment", status.detail


async def test_a_build_reaches_the_index_alone(
    market: Market, node: State, device: str, index: Index
):
    with served(Index()) as other:
        sha = other.add("greeting", "2.1", code=CODE)
        wanted = lock(other, f"greeting==2.1 --hash=sha256:{sha}")
        wanted = msgspec.structs.replace(wanted, hosts=[index.host])
        script = market.offer({"main.py": USES}, "script")
        job = market.want(spec(script, devices=[device], packages=wanted))
        status = await market.until(lambda: market.settled(job))
        assert status.exit.why == "environment"  # the index itself answers
        assert "not among the names" in status.detail or "is not allowed there" in status.detail
        assert other.gets == []


@pytest.mark.parametrize(
    ("changes", "network", "why"),
    [
        ({}, Network(builds=False), "lets no environments be built"),
        ({"python": "3.12"}, Network(), "for Python 3.12, and this node has 3.11"),
        ({"torch": "1.0.0"}, Network(), f"go with torch 1.0.0, and this node has {TORCH}"),
        ({"text": "other==1.0\n"}, Network(), "not the one that its hash names"),
    ],
)
async def test_what_can_not_be_built_here_is_refused(
    market: Market, state: State, device: str, index: Index, changes, network, why
):
    config.save(state, msgspec.structs.replace(config.load(state), network=network))
    wanted = msgspec.structs.replace(lock(index, "greeting==1.0"), **changes)
    asked = spec(market.offer({"main.py": b""}, "script"), devices=[device], packages=wanted)
    with pytest.raises(orders.SpecRefused, match=re.escape(why)):
        orders.check(asked, nodes.machine(state), ())


def test_market_and_agent_agree_on_what_belongs_to_torch():
    assert requirements._FAMILY.pattern == packages.FAMILY


async def test_orgs_whose_ids_begin_alike_build_the_same_lock_side_by_side(
    state: State, index: Index
):
    sha = index.add("greeting", "2.1", code=CODE)
    wanted = lock(index, f"greeting==2.1 --hash=sha256:{sha}")
    builds = packages.Builds(
        Shelves(state.environments, state.cache, lambda path: False), nodes.machine(state)
    )
    orgs = [UUID(int=7), UUID(int=8)]
    built = await asyncio.gather(*(builds.get(org, wanted, print) for org in orgs))
    assert [path.parent.name for path in built] == [str(org) for org in orgs]
    assert all((path / "bin" / "greeting-says").is_file() for path in built)


def test_environments_that_were_long_unused_go_and_those_in_use_stay(state: State):
    folders = {name: state.environments / "orgs" / "org" / name for name in ("old", "used", "new")}
    for name, folder in folders.items():
        (folder / "lib").mkdir(parents=True)
        age = 0 if name == "new" else 30 * 24 * 3600
        os.utime(folder, (time.time() - age,) * 2)
    left_over = state.environments / "building" / "half" / "job"
    left_over.mkdir(parents=True)
    Shelves(state.environments, state.cache, lambda path: path.name == "used").sweep()
    assert [name for name, folder in folders.items() if folder.exists()] == ["used", "new"]
    assert not left_over.parent.exists()
