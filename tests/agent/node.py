"""`python -m tests.agent.node STATE`: the agent's daemon with a sandbox that needn't be probed."""

import asyncio
import os
import sys
from pathlib import Path

from agent import config, environment, protocol
from agent import order as files
from agent.client import Pace
from agent.config import Config, State
from agent.hardware import Machine, survey
from agent.loop import Daemon
from agent.order import Rung
from agent.walls import Walls
from tests.agent.market import Market

PACE = Pace(after_a_cut=(0.01, 0.05), after_a_refusal=(0.05, 0.1))
TRAINING = environment.look()
RUNG = Rung(wall="root" if os.getuid() == 0 else "userns", limits="rlimits", disk="watchdog")


def enrolled(root: Path, market: Market) -> State:
    """A state folder that the market knows."""
    state = config.open_state(root)
    state.make()
    key = config.make_key(state)
    reply = market.admit(key.public_key().public_bytes_raw())
    config.save(
        state,
        Config(
            market=market.url,
            node=reply.node,
            name="node",
            server=reply.server,
            agents_url=reply.agents_url,
            market_key=reply.market_key,
        ),
    )
    return state


def machine(state: State, rung: Rung = RUNG) -> Machine:
    """This machine, as if its sandbox had been attacked in vain."""
    shown = protocol.Sandbox(rung=rung.name, checks=30, held=30, harmful=0)
    walls = Walls(boot_id=files.boot_id(), unsafe=False, rung=rung, shown=shown)
    network = config.load(state).network if state.config.exists() else config.CLOSED
    return survey(state, TRAINING, walls, network=network)


def daemon(state: State, pace: Pace = PACE) -> Daemon:
    """A node at work, to be run in the test's own loop."""
    settings, key = config.load(state), config.load_key(state)
    return Daemon(state, settings, key, machine(state), pace)


if __name__ == "__main__":
    where = config.open_state(Path(sys.argv[1]))
    with config.only_agent(where):
        asyncio.run(daemon(where).run())
