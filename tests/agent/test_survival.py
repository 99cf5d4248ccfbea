"""Nothing is lost: the agent killed, the market restarted or away, the connection broken."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from agent import keeper
from agent.config import State
from agent.protocol import Status
from tests.agent import node as nodes
from tests.agent.conftest import spec
from tests.agent.market import Market

ROOT = Path(__file__).resolve().parents[2]
# Goes on until `go` appears in its folder, so that nothing depends on how fast anything is.
PATIENT = b"""
import os, time
print("begun", flush=True)
metrics, step = open("/job/metrics.jsonl", "a", buffering=1), 0
while not os.path.exists("go"):
    step += 1
    metrics.write('{"step": %d, "loss": 1.0}\\n' % step)
    time.sleep(0.1)
os.makedirs("/job/output/artifact")
open("/job/output/artifact/model", "w").write("the result")
"""

Agent = subprocess.Popen[bytes]


@pytest.fixture
def device(state: State) -> str:
    return nodes.machine(state).inventory.devices[0].uuid


@pytest.fixture
def agent(state: State) -> Iterator[Callable[[], Agent]]:
    """Starts agents, one after the other, with the node's state."""
    started: list[Agent] = []

    def start() -> Agent:
        argv = [sys.executable, "-m", "tests.agent.node", str(state.root)]
        started.append(subprocess.Popen(argv, cwd=ROOT))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def _kill(process: Agent) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def _go(state: State, job: UUID) -> None:
    (state.assignments / str(job) / "job" / "work" / "go").touch()


def _settled(market: Market, job: UUID) -> Status:
    return market.wait(lambda: market.settled(job))


def _wants(market: Market, device: str, code: bytes = PATIENT, **changes: object) -> UUID:
    return market.want(spec(market.offer({"main.py": code}, "script"), devices=[device], **changes))


def test_a_killed_agent_finds_its_job_again(market: Market, state: State, agent, device: str):
    first = agent()
    job = _wants(market, device)
    market.wait(lambda: market.statuses.get(job) and market.statuses[job].step > 3)
    market.wait(lambda: market.claims)
    before, claimed = market.statuses[job], market.claims[-1]
    _kill(first)
    status = keeper.read_status(state.assignments / str(job))
    assert status is not None
    assert status.state == "running"  # nobody watches it, and it goes on
    agent()
    hello = market.wait(lambda: len(market.hellos) == 2 and market.hellos[-1])
    assert [one.state for one in hello.assignments] == ["running"]
    market.wait(lambda: market.statuses[job].step > before.step + 3)
    _go(state, job)
    after = _settled(market, job)
    assert (after.exit.code, after.exit.why) == (0, "exited")
    assert after.running_ms > before.running_ms
    numbers = [claim.n for claim in market.claims]
    assert numbers == sorted(numbers)
    assert market.claims[-1].n > claimed.n
    assert market.claims[-1].running_ms == after.running_ms
    [artifact] = market.sent("artifact")
    assert artifact.files == {"model": b"the result"}
    [log] = market.sent("log")
    assert log.files["stdout.log"] == b"begun\n"  # it was started once
    steps = [point.step for point in market.metrics]
    assert set(steps) == set(range(1, after.step + 1))


def test_an_agent_killed_after_its_job_has_ended_still_sends_the_result(
    market: Market, state: State, agent, device: str
):
    first = agent()
    job = _wants(market, device)
    market.wait(lambda: market.state(job) == "running")
    _kill(first)
    _go(state, job)
    assert keeper.wait(state.assignments / str(job), 30)
    agent()
    status = _settled(market, job)
    assert status.exit.code == 0
    assert len(market.sent("artifact")) == 1
    assert market.claims[-1].running_ms == status.running_ms


def test_an_agent_killed_while_it_sends_sends_again_and_commits_once(
    market: Market, state: State, agent, device: str
):
    first = agent()
    job = _wants(market, device)
    market.wait(lambda: market.state(job) == "running")
    market.faults.expire_uploads = 3
    _go(state, job)
    market.wait(lambda: market.state(job) == "gone")
    _kill(first)
    market.faults.expire_uploads = 0
    agent()
    status = _settled(market, job)
    assert status.exit.code == 0
    assert [one.files for one in market.sent("artifact")] == [{"model": b"the result"}]


def test_an_agent_killed_while_it_fetches_goes_on_where_it_was(
    market: Market, state: State, agent, device: str
):
    data = os.urandom(3 * 2**20 + 17)
    base = market.offer({"model": data}, "base", public=True)
    script = market.offer(
        {"main.py": b"print(len(open('/job/inputs/base/model', 'rb').read()))"}, "script"
    )
    market.faults.break_after = [2**20, 2**20] + [0] * 1000  # the script is small
    first = agent()
    job = market.want(spec(script, base, devices=[device]))
    market.wait(lambda: any(span for _, span in market.gets))
    _kill(first)
    market.faults.break_after = []
    agent()
    assert _settled(market, job).exit.code == 0
    spans = [span for sha256, span in market.gets if sha256 == base.files[0].sha256]
    assert spans[0] == ""
    assert spans[-1] == f"bytes={2**20}-"
    assert market.sent("log")[0].files["stdout.log"] == b"%d\n" % len(data)


def test_a_folder_that_can_not_be_read_is_given_up(
    market: Market, state: State, agent, device: str
):
    first = agent()
    job = _wants(market, device)
    market.wait(lambda: market.state(job) == "running")
    _kill(first)
    (state.assignments / str(job) / "assignment.json").write_text("{")
    (state.assignments / "a-stray-file").touch()
    agent()
    hello = market.wait(lambda: len(market.hellos) == 2 and market.hellos[-1])
    assert hello.assignments == []  # so the market starts it elsewhere
    (state.assignments / "a-stray-file").unlink()


def test_the_owner_has_the_machine_back_even_without_an_agent(
    market: Market, state: State, agent, device: str
):
    first = agent()
    job = _wants(market, device)
    market.wait(lambda: market.state(job) == "running")
    _kill(first)
    argv = [sys.executable, "-m", "agent", "drain", "--state", str(state.root)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert f"Waiting for job {job}" in done.stdout
    gone = keeper.read_status(state.assignments / str(job))
    assert gone is not None
    assert (gone.why, gone.detail) == ("drain", "owner asked to drain")


async def test_the_market_may_restart_in_mid_job(market: Market, node: State, device: str):
    job = _wants(market, device)
    await market.until(lambda: market.statuses.get(job) and market.statuses[job].step > 2)
    await asyncio.to_thread(market.stop)
    running = keeper.read_status(node.assignments / str(job))
    assert running is not None
    assert running.state == "running"
    market.start()
    await market.until(lambda: len(market.hellos) == 2)
    _go(node, job)
    status = await market.until(lambda: market.settled(job))
    assert status.exit.code == 0
    assert market.sent("artifact")
    assert market.sent("log")[0].files["stdout.log"] == b"begun\n"


async def test_a_job_ends_while_the_market_is_away_and_is_handed_in_when_it_is_back(
    market: Market, node: State, device: str
):
    job = _wants(market, device)
    await market.until(lambda: market.state(job) == "running")
    await asyncio.to_thread(market.stop)
    _go(node, job)
    assert await asyncio.to_thread(keeper.wait, node.assignments / str(job), 30)
    market.start()
    status = await market.until(lambda: market.settled(job))
    assert status.exit.code == 0
    assert market.sent("artifact")[0].files == {"model": b"the result"}
    assert market.claims[-1].final


async def test_cut_off_it_runs_on_no_longer_than_anybody_pays(
    market: Market, node: State, device: str
):
    script = market.offer({"main.py": PATIENT}, "script")
    job = market.want(spec(script, devices=[device], save_s=0), paid_ms=3000)
    await market.until(lambda: market.state(job) == "running")
    await asyncio.to_thread(market.stop)
    gone = await asyncio.to_thread(keeper.wait, node.assignments / str(job), 30)
    assert gone is not None
    assert gone.why == "unpaid"
    market.start()
    status = await market.until(lambda: market.settled(job))
    assert status.exit.why == "unpaid"


async def test_cut_off_for_longer_than_the_market_allows_it_saves_and_leaves(
    market: Market, state: State, device: str
):
    market.spool_s = 0.5
    task = asyncio.create_task(nodes.daemon(state).run())
    script = market.offer({"main.py": PATIENT}, "script")
    job = market.want(spec(script, devices=[device], grace_s=0.2))
    await market.until(lambda: market.state(job) == "running")
    await asyncio.to_thread(market.stop)
    gone = await asyncio.to_thread(keeper.wait, state.assignments / str(job), 30)
    assert gone is not None
    assert (gone.why, gone.detail) == ("drain", "market_away")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_broken_socket_is_opened_again_at_once(market: Market, node: State):
    for times in (1, 2, 3):
        await market.until(lambda times=times: len(market.hellos) == times and market.heartbeats)
        market.heartbeats.clear()
        market.cut()
    await market.until(lambda: market.heartbeats)
    assert market.heartbeats[-1].seq > 0  # rises for as long as the agent lives


async def test_a_refusal_that_is_final_ends_the_agent_with_its_words(market: Market, state: State):
    from agent.client import TurnedAway

    market.faults.refuse_socket = ("this node is retired", True)
    with pytest.raises(TurnedAway, match="this node is retired"):
        await asyncio.wait_for(nodes.daemon(state).run(), 30)


async def test_any_other_refusal_is_waited_out(market: Market, state: State):
    market.faults.refuse_socket = ("too many at once", False)
    task = asyncio.create_task(nodes.daemon(state).run())
    await asyncio.sleep(0.3)
    market.faults.refuse_socket = None
    await market.until(lambda: market.heartbeats)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_another_market_at_the_same_address_gets_no_signature(market: Market, state: State):
    from agent.client import TurnedAway

    market.server_name = "somebody else"
    with pytest.raises(TurnedAway, match="'somebody else'"):
        await asyncio.wait_for(nodes.daemon(state).run(), 30)
    assert market.hellos == []
