"""An org with a base and some folders, and what it asks for."""

from dataclasses import asdict

import pytest

from buyers import services
from buyers.models import Artifact, Dataset
from marketplace.core import specs
from marketplace.core.ids import uuid7
from marketplace.core.money import MICRO
from marketplace.core.shapes import BaseShape
from tests import tiny_base, world


def manifest(*paths):
    return [{"path": path, "bytes": 10, "sha256": "0" * 64} for path in paths]


def folder(kind, *paths, now, **facts):
    return kind.objects.create(
        id=uuid7(), manifest=manifest(*paths), sha256="0" * 64, bytes=10 * len(paths), prefix="x/",
        created_at=now, committed_at=facts.pop("committed_at", now), **facts,
    )  # fmt: skip


@pytest.fixture
def org(now):
    return world.org("Buyer", now=now, wallet=100 * MICRO)


@pytest.fixture
def base(now):
    return folder(
        Artifact, "config.json", "model.safetensors", now=now, name="tiny", public=True,
        shape=asdict(BaseShape.from_config(tiny_base.CONFIG)),
    )  # fmt: skip


@pytest.fixture
def pairs(org, now):
    return folder(
        Dataset, "train.jsonl", "heldout.jsonl", now=now, org=org, name="pairs", version=1
    )


@pytest.fixture
def code(org, now):
    return folder(Dataset, "main.py", "lib/x.py", now=now, org=org, name="code", version=1)


@pytest.fixture
def plan(org, now):
    def plan(**asked):
        wanted = {"recipe": "lora", "base": "tiny", "dataset": "pairs", "budget": "5", **asked}
        given = {name: value for name, value in wanted.items() if value is not None}
        return services.plan(org, specs.parse(given), now=now)

    return plan
