"""Whether a job may run on an offer, and the words for why not."""

from dataclasses import replace

import pytest

from marketplace.core.fit import Stands, Wants, misfit, suits

GIB = 2**30
WANTS = Wants(
    org="buyer", gpus=2, gpus_max=2, level=0, memory_bytes=40 * GIB, memory_cpu_bytes=50 * GIB,
    disk_bytes=100 * GIB, trust=2, tier=1, ray=False,
    regions=frozenset({"eu-west"}), environment="", runs_code=True, avoid=frozenset(),
    limits={"h100-sxm": 3_000_000},
)  # fmt: skip
STANDS = Stands(
    node="n1", org="supplier", gpu_class="h100-sxm", gpus=8, free=8, memory_bytes=80 * GIB,
    disk_bytes=1000 * GIB, trust=1, tier=0, region="eu-west", environment="env", scripts=True,
    gangs=True, ray=False, own_org_only=False, ask=2_000_000,
)  # fmt: skip


def test_what_fits_needs_no_words():
    assert misfit(WANTS, STANDS) == ""


@pytest.mark.parametrize(
    ("wants", "stands", "word"),
    [
        ({}, {"own_org_only": True}, "owner"),
        ({}, {"scripts": False}, "recipes"),
        ({"egress": True}, {}, "names to reach"),
        ({}, {"trust": 3}, "trusted"),
        ({}, {"region": "us-east"}, "us-east"),
        ({}, {"gpu_class": "rtx-4090"}, "rtx-4090"),
        ({}, {"memory_bytes": 24 * GIB}, "40.0 GiB"),
        ({}, {"disk_bytes": 10 * GIB}, "disk"),
        ({}, {"tier": 2}, "proven"),
        ({"environment": "other"}, {}, "environment"),
        ({"python": "3.11"}, {"python": "3.11"}, "built"),
        ({"python": "3.11"}, {"builds": True, "python": "3.12"}, "Python"),
        ({"python": "3.11", "torch": "2"}, {"builds": True, "python": "3.11"}, "torch 2"),
        ({"ray": True}, {}, "no Ray"),
        ({"avoid": frozenset({"n1"})}, {}, "failed"),
        ({"gpus": 16}, {}, "16 GPUs in one node"),
        ({"gpus": 16, "level": 1}, {"gangs": False}, "no part in jobs of several nodes"),
        ({"level": 1}, {"gangs": False, "free": 1}, "let"),
        ({}, {"free": 1}, "let"),
        ({}, {"ask": 3_000_001}, "limit"),
    ],
)
def test_each_reason_is_said(wants, stands, word):
    assert word in misfit(replace(WANTS, **wants), replace(STANDS, **stands))


def test_an_owner_may_use_what_is_kept_for_the_owner():
    assert not misfit(replace(WANTS, org="supplier"), replace(STANDS, own_org_only=True))


def test_what_is_let_or_dear_still_suits():
    assert suits(WANTS, replace(STANDS, free=0, ask=9_000_000))
    assert not suits(WANTS, replace(STANDS, tier=2))
