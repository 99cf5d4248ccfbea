"""Quotes learn from jobs that have finished, and how well they foretold is published."""

from dataclasses import asdict, replace

import pytest

from buyers import services
from buyers.models import Artifact, Dataset, MetricPoint
from marketplace.core.ids import uuid7
from marketplace.core.shapes import BaseShape
from marketplace.core.specs import parse
from scheduler import jobs, metering, paces, public, quoting, timing
from scheduler.models import Assignment, FinishedRun
from suppliers.models import Benchmark
from tests import tiny_base, world
from tests.scheduler.test_leases import seconds

pytestmark = pytest.mark.django_db


@pytest.fixture
def request_of(buyer, now):
    """A LoRA job on a base of known shape."""
    paths = ("config.json", "model.safetensors", "train.jsonl", "heldout.jsonl")
    manifest = [{"path": path, "bytes": 600, "sha256": "a" * 64} for path in paths]
    common = {"manifest": manifest, "sha256": "b" * 64, "bytes": 2400, "prefix": "x/",
              "created_at": now, "committed_at": now}  # fmt: skip
    shape = asdict(BaseShape.from_config(tiny_base.CONFIG))
    base = Artifact.objects.create(name="tiny", public=True, shape=shape, **common)
    rows = Dataset.objects.create(
        org=buyer, name="pairs", version=1, rows=10, created_by="me", **common
    )
    return parse({"recipe": "lora", "base": str(base.pk), "dataset": str(rows.pk),
                  "budget": "50", "memory_gib": 10, "parameters": {"steps": 5}})  # fmt: skip


@pytest.fixture
def measured(node, now):
    Benchmark.objects.create(
        node=node.node, asked_at=now, finished_at=now, passed=True, tflops=400, task={}
    )
    return node


@pytest.fixture
def finished(buyer, measured, request_of, now):
    """A taken job that ran for 20 s at 1,000 tokens a second and left its model."""

    def run(request=request_of):
        quote = quoting.quote(buyer, request, now=now)
        job = jobs.take(quote, option=0, by=buyer.members.get(), now=now)
        share = Assignment.objects.get(lease__job=job)
        node = measured
        for second in (0, 10, 20):
            running = world.status(share, "running", running_ms=second * 1000, step=second // 4)
            node.says(running, now=now + seconds(second))
        for step in range(1, 6):
            MetricPoint.objects.create(
                job=job, epoch=share.lease.epoch, step=step, at=now + seconds(4 * step),
                values={"loss": 1.0, "tokens_per_s": 1000.0 + step},
            )  # fmt: skip
        at = now + seconds(20)
        metering.claim(node.node, node.claim(share, 20_000, final=True), now=at)
        Artifact.objects.create(
            org=buyer, job=job, epoch=share.lease.epoch, name="made", manifest=[], sha256="c" * 64,
            bytes=0, prefix="y/", created_at=at, committed_at=at,
        )  # fmt: skip
        gone = world.status(
            share, "gone", running_ms=20_000, exit=world.exited(0), settled=True, step=5
        )
        node.says(gone, now=at)
        job.refresh_from_db()
        assert job.state == "succeeded"
        return quote, job

    return run


def test_a_finished_job_is_kept_beside_what_its_quote_said(finished):
    quote, job = finished()
    run = FinishedRun.objects.get(job=job)
    assert (run.seconds, run.tokens_per_s, run.charged_micros) == (20, 1003, job.spent_micros)
    assert run.quoted_s == quote.options[0]["seconds"]
    assert run.quoted_micros == quote.options[0]["total"]
    assert run.share is not None


def test_the_next_quote_of_the_kind_is_sure_of_more(buyer, finished, request_of, now):
    before, _ = finished()
    run = FinishedRun.objects.get()

    def quoted(**known):
        FinishedRun.objects.update(**known)
        option = quoting.quote(buyer, request_of, now=now + seconds(30)).options[0]
        return option["seconds"], option["seconds_high"] / option["seconds_low"]

    nothing, overhead, both = (
        quoted(overhead=None),
        quoted(overhead=run.overhead),
        quoted(share=0.2),
    )
    assert run.share < 0.001, "a tiny model on a large GPU: not believed"
    assert nothing[0] == before.options[0]["seconds"]
    assert abs(overhead[0] - run.seconds) < abs(nothing[0] - run.seconds)
    assert nothing[1] > overhead[1] > both[1]


def test_each_place_takes_as_long_as_its_own_machine_would(buyer, request_of, measured, now):
    speeds = {measured.node.name: 400.0}
    for tflops in (0.1, 100.0, None):
        agent = world.agent(world.org(now=now), now=now)
        speeds[agent.node.name] = tflops
        if tflops:
            Benchmark.objects.create(
                node=agent.node, asked_at=now, finished_at=now, passed=True, tflops=tflops, task={}
            )
    options = quoting.quote(buyer, replace(request_of, budget_micros=10**12), now=now).options
    plan = services.plan(buyer, request_of, now=now)
    assert {option["node"] for option in options} == speeds.keys()
    for option in options:
        alone = timing.estimated(plan, tflops=speeds[option["node"]], gpus=1)
        told = (option["seconds_low"], option["seconds"], option["seconds_high"])
        assert told == (alone.seconds_low, alone.seconds, alone.seconds_high)
    totals = [option["total"] for option in options]
    assert totals == sorted(totals)


def test_what_was_tried_twice_says_nothing_of_its_overhead(finished, now):
    _, job = finished()
    lease, earlier = job.leases.get(), job.leases.get()
    earlier.pk, earlier.epoch = uuid7(), lease.epoch - 1
    earlier.save(force_insert=True)
    FinishedRun.objects.all().delete()
    paces.note(job, lease, now=now)
    run = FinishedRun.objects.get()
    assert run.share is not None
    assert run.overhead is None


def test_a_recipe_made_of_others_ends_as_well_and_says_nothing_of_its_pace(finished, request_of):
    """Of a chain there is no one length of rows, and a note must never undo an end."""
    stages = [{"recipe": "sft", "parameters": {"steps": 5, "answers": 0}}]
    chain = replace(request_of, recipe="chain", parameters={"stages": stages})
    _, job = finished(chain)
    run = FinishedRun.objects.get(job=job)
    assert (run.recipe, run.share, run.tokens_per_s) == ("chain", None, 1003)


def test_the_market_page_tells_how_well_quotes_foretold(finished, now):
    assert public.look(now=now).accuracy is None
    finished()
    told = public.look(now=now + seconds(60)).accuracy
    assert told is not None
    assert told.jobs == 1
    assert told.time_error > 0


def test_a_running_job_tells_how_long_it_still_takes(buyer, node, now):
    job = world.job(buyer, now=now, total_steps=100)
    lease = world.lease(job, node, now=now)
    for step in (1, 2, 11):
        MetricPoint.objects.create(
            job=job, epoch=lease.epoch, step=step, values={"loss": 1.0}, at=now + seconds(2 * step)
        )
        if step < 11:
            assert timing.left(job, lease) is None, "too early to tell"
    assert timing.left(job, lease) == pytest.approx(178)
    node.says(world.status(lease.assignments.get(), "running"), now=now)
    job.refresh_from_db()
    assert "about 2 min 58 s left" in jobs.describe(job)
