"""An agent that knows that it goes says so, and leaves no work behind."""

import asyncio

import pytest

from agent.config import State
from tests.agent import node as nodes
from tests.agent.conftest import spec
from tests.agent.market import Market
from tests.agent.test_jobs import OBEDIENT


@pytest.fixture
def device(state: State) -> str:
    return nodes.machine(state).inventory.devices[0].uuid


async def test_an_agent_that_says_goodbye_has_its_jobs_saved_before_it_goes(
    market: Market, state: State, device: str
):
    daemon = nodes.daemon(state)
    working = asyncio.create_task(daemon.run())
    job = market.want(spec(market.offer({"main.py": OBEDIENT}, "script"), devices=[device]))
    await market.until(lambda: market.metrics)
    daemon.leave()
    beat = await market.until(lambda: market.last().owner_busy and market.last())
    assert beat.owner_why == "its machine is going down"
    market.drain(job, "reclaimed", 20)  # as the market does for an owner
    await asyncio.wait_for(working, 20)
    status = market.settled(job)
    assert status is not None
    assert (status.exit.code, status.exit.why) == (75, "drain")
    assert market.sent("checkpoint")[-1].step == 9


async def test_an_agent_that_leaves_while_the_market_is_away_ends_its_jobs_in_order(
    market: Market, state: State, device: str
):
    daemon = nodes.daemon(state)
    working = asyncio.create_task(daemon.run())
    job = market.want(spec(market.offer({"main.py": OBEDIENT}, "script"), devices=[device]))
    await market.until(lambda: market.metrics)
    market.faults.refuse_socket = ("away", False)
    market.cut()
    daemon.leave()
    await asyncio.wait_for(working, 20)
    assert (state.assignments / str(job) / "job/output/checkpoint-9/w").read_text() == "saved"
