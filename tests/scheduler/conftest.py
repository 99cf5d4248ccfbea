"""A buyer with money and a supplier's node, for the engine's tests."""

import pytest

from marketplace.core.money import MICRO
from tests import world


@pytest.fixture
def buyer(now):
    return world.org("Buyer", now=now, wallet=1000 * MICRO)


@pytest.fixture
def node(now):
    world.listening(now)
    return world.agent(world.org("Supplier", now=now), now=now)
