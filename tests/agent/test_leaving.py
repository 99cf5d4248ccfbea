"""The owner comes first: a machine that is wanted back, or goes down, has its jobs saved."""

import asyncio

from agent.config import State
from tests.agent import node as nodes
from tests.agent.conftest import OBEDIENT, spec
from tests.agent.market import Market


async def test_the_owner_has_the_machine_back_for_the_asking(
    market: Market, node: State, device: str
):
    node.drain.touch()
    beat = await market.until(lambda: market.last().owner_busy and market.last())
    assert beat.owner_why == "owner asked to drain"
    node.drain.unlink()
    await market.until(lambda: not market.last().owner_busy)


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
