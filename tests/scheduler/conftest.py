"""A buyer with money and a supplier's node, for the engine's tests."""

import json
import subprocess
import sys

import pytest
from django.db import connection

from marketplace.core.money import MICRO
from tests import world


@pytest.fixture
def buyer(now):
    return world.org("Buyer", now=now, wallet=1000 * MICRO)


@pytest.fixture
def node(now):
    world.listening(now)
    return world.agent(world.org("Supplier", now=now), now=now)


@pytest.fixture
def worker():
    """Runs one of the workers here that die, on this database: by its module, the moment, and now."""
    names = ("NAME", "USER", "PASSWORD", "HOST", "PORT")
    database = json.dumps({name: connection.settings_dict[name] for name in names})

    def run(module, moment, now):
        told = [sys.executable, "-m", f"tests.scheduler.{module}", database, moment]
        return subprocess.run([*told, now.isoformat()], capture_output=True, text=True, check=False)

    return run
