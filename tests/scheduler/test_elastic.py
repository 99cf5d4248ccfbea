"""Gangs of a least and a most number of GPUs: as many as pay, and fewer when a node is lost."""

from dataclasses import asdict

import pytest

from agent import protocol
from buyers.models import Artifact, Dataset, Job
from marketplace.core.money import MICRO
from marketplace.core.shapes import BaseShape
from marketplace.core.specs import parse
from scheduler import assignments, clearing, jobs, metering, quoting, receipts, watch
from scheduler.models import Credit, Lease, LeasedGpu
from suppliers.models import Node
from tests import tiny_base, world
from tests.scheduler.test_leases import seconds

pytestmark = pytest.mark.django_db
H100 = "h100-sxm"


@pytest.fixture
def supplier(now):
    return world.org("Supplier", now=now)


@pytest.fixture
def nodes(supplier, now):
    """Three nodes of one site, a GPU each, that may work together."""
    world.listening(now)
    first = world.agent(supplier, now=now, lan_address="10.0.0.1")
    more = [
        world.agent(supplier, now=now, lan_address=f"10.0.0.{number}", site=first.node.site)
        for number in (2, 3)
    ]
    return [first, *more]


@pytest.fixture
def gang(buyer, nodes, now):
    """A lease of 2 to 3 GPUs on all three nodes, running."""
    job = world.job(buyer, now=now, gpus_min=2, gpus_max=3, level=1)
    shares = list(world.lease(job, *nodes, now=now).assignments.order_by("rank"))
    for agent, share in zip(nodes, shares, strict=True):
        agent.says(world.status(share, "running"), now=now)
    return list(zip(nodes, shares, strict=True))


@pytest.fixture
def tuned(buyer, now):
    """What a buyer asks for: LoRA of a base of known shape, on nodes with Ray."""
    Node.objects.update(inventory={"environment": {"packages": {"ray": "2"}}})
    paths = ("config.json", "model.safetensors", "train.jsonl", "heldout.jsonl")
    manifest = [{"path": path, "bytes": 600, "sha256": "a" * 64} for path in paths]
    common = {"manifest": manifest, "sha256": "b" * 64, "bytes": 2400, "prefix": "x/",
              "created_at": now, "committed_at": now}  # fmt: skip
    shape = asdict(BaseShape.from_config(tiny_base.CONFIG))
    base = Artifact.objects.create(name="tiny", public=True, shape=shape, **common)
    rows = Dataset.objects.create(
        org=buyer, name="pairs", version=1, rows=10, created_by="me", **common
    )

    def request(**changes):
        wanted = {"recipe": "lora", "base": str(base.pk), "dataset": str(rows.pk),
                  "budget": "50", "parameters": {"steps": 500, "batch_size": 8}}  # fmt: skip
        return parse({**wanted, **changes})

    return request


def _run(gang, since_s, until_s, now):
    """These ranks run, beat and claim, each ten seconds."""
    for at in range(since_s, until_s + 1, 10):
        for agent, share in gang:
            status = world.status(share, "running", running_ms=at * 1000, step=at)
            agent.says(status, now=now + seconds(at))
            metering.claim(agent.node, agent.claim(share, at * 1000), now=now + seconds(at))


def test_a_round_gives_as_many_gpus_as_there_are_up_to_the_most(buyer, nodes, now):
    world.job(buyer, now=now, gpus_min=1, gpus_max=2, level=1, limits={H100: 3 * MICRO})
    assert clearing.clear_market(now=now) == 1
    assert Lease.objects.get().gpus_count == 2


def test_a_round_gives_fewer_where_there_are_no_more(buyer, nodes, now):
    world.job(buyer, now=now, gpus_min=3, gpus_max=8, level=1, limits={H100: 3 * MICRO})
    clearing.clear_market(now=now)
    spec = protocol.decode(
        bytes(Lease.objects.get().assignments.first().spec), protocol.AssignmentSpec
    )
    assert (len(spec.gang.members), spec.gang.gpus_min) == (3, 3)


def test_a_quote_shows_each_size_and_what_it_costs(buyer, nodes, tuned, now):
    options = quoting.quote(buyer, tuned(gpus=1, gpus_max=2, level="site"), now=now).options
    one, two = (next(o for o in options if o["gpus"] == gpus) for gpus in (1, 2))
    assert two["seconds"] < one["seconds"]
    assert len(two["seats"]) == 2
    assert two["kwh"] == pytest.approx(one["kwh"] * 2 * two["seconds"] / one["seconds"])


def test_what_was_quoted_is_taken_in_its_size(buyer, nodes, tuned, now):
    quote = quoting.quote(buyer, tuned(gpus=1, gpus_max=3, level="site"), now=now)
    three = next(option for option in quote.options if option["gpus"] == 3)
    job = jobs.take(quote, option=three["index"], by=buyer.members.get(), now=now)
    assert (job.gpus_min, job.gpus_max) == (1, 3)
    assert Lease.objects.get().gpus_count == 3


def test_a_gang_goes_on_without_a_node_that_breaks_and_pays_it_no_longer(gang, now):
    _run(gang, 10, 60, now)
    (agent, broken), others = gang[1], [gang[0], gang[2]]
    dead = world.exited(None, "keeper_lost")
    gone = world.status(broken, "gone", running_ms=60_000, exit=dead, settled=True)
    agent.says(gone, now=now + seconds(62))
    lease = Lease.objects.get()
    assert (lease.state, lease.end_reason) == ("running", "")
    assert all(assignments.desired(each.node).assignments[0].drain is None for each, _ in others)
    assert not LeasedGpu.objects.filter(gpu__node=agent.node, released_at=None).exists()
    _run(others, 70, 120, now)
    metering.settle(now=now + seconds(121))
    for each, share in others:
        done = world.status(share, "gone", running_ms=120_000, exit=world.exited(0), settled=True)
        each.says(done, now=now + seconds(122))
    job = Job.objects.get()
    receipt = receipts.receipt(job)
    assert sorted(line.seconds for line in receipt.lines) == [60, 120, 120]
    assert receipt.total == job.spent_micros
    assert Lease.objects.get().end_reason == "completed"
    assert not Credit.objects.exists()


def test_a_gang_goes_on_without_a_node_that_falls_silent(gang, now):
    _run(gang, 10, 60, now)
    others = [gang[0], gang[1]]
    world.listening(now + seconds(120))
    _run(others, 70, 120, now)
    watch.watch(now=now + seconds(121))
    lease = Lease.objects.get()
    assert (lease.state, lease.end_reason) == ("running", "")
    lost = lease.assignments.get(rank=2)
    assert (lost.exit_why, lost.at_fault) == ("node_lost", True)
    assert lost.spared_at is not None


def test_an_owner_takes_one_node_of_a_gang_back_and_the_others_go_on(gang, now):
    _run(gang, 10, 60, now)
    (agent, share), others = gang[2], gang[:2]
    watch.reclaim(agent.node, why="its owner needs it", now=now + seconds(61))
    assert assignments.desired(agent.node).assignments[0].drain.why == "reclaimed"
    assert all(assignments.desired(each.node).assignments[0].drain is None for each, _ in others)
    left = world.status(share, "gone", running_ms=62_000, exit=world.exited(75, "drain"))
    agent.says(left, now=now + seconds(62))
    assert Lease.objects.get().state == "running"
    assert not LeasedGpu.objects.filter(gpu__node=agent.node, released_at=None).exists()


def test_an_owner_who_takes_back_too_many_ends_the_attempt(gang, now):
    for agent, _ in gang[1:]:
        watch.reclaim(agent.node, why="its owner needs it", now=now + seconds(61))
    assert Lease.objects.get().end_reason == "reclaimed"
    assert all(
        assignments.desired(each.node).assignments[0].drain.why == "reclaimed" for each, _ in gang
    )


def test_a_node_that_was_spared_and_does_not_go_is_given_up_on(gang, now):
    agent, share = gang[2]
    watch.reclaim(agent.node, why="its owner needs it", now=now)
    later = now + seconds(share.offer.notice_s + 60)
    _run(gang, int((later - now).total_seconds()), int((later - now).total_seconds()), now)
    world.listening(later)
    watch.watch(now=later)
    share.refresh_from_db()
    assert share.gone_at is not None
    assert Lease.objects.get().state == "running"


def test_the_first_rank_can_not_be_spared(gang, now):
    (agent, first), *_ = gang
    dead = world.exited(None, "keeper_lost")
    agent.says(world.status(first, "gone", exit=dead, settled=True), now=now + seconds(62))
    assert Lease.objects.get().end_reason == "node_lost"


def test_below_its_least_a_gang_is_queued_again(gang, now):
    dead = world.exited(None, "keeper_lost")
    for agent, share in gang[1:]:
        agent.says(world.status(share, "gone", exit=dead, settled=True), now=now + seconds(62))
    lease = Lease.objects.get()
    assert lease.end_reason == "node_lost"
    first, share = gang[0]
    left = world.status(share, "gone", exit=world.exited(75, "drain"), settled=True)
    first.says(left, now=now + seconds(65))
    job = Job.objects.get()
    assert job.state == "queued"
    assert sorted(job.avoid_nodes) == sorted(str(agent.node.pk) for agent, _ in gang[1:])


def test_what_the_job_broke_itself_ends_it_on_all_nodes(gang, now):
    agent, share = gang[1]
    over = world.status(share, "gone", exit=world.exited(None, "memory"), settled=True)
    agent.says(over, now=now + seconds(62))
    assert Lease.objects.get().end_reason == "failed"
