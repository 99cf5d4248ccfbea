"""What a round tells the jobs and offers that got nothing, and the changes that a buyer then makes."""

from dataclasses import replace
from datetime import timedelta

import pytest

from buyers import jobview
from buyers.models import Job
from marketplace.core.errors import Conflict, Invalid, NotEnoughMoney
from marketplace.core.money import MICRO
from scheduler import changes, clearing, explaining
from scheduler.models import Lease, LeasedGpu, Told
from suppliers import board
from suppliers.models import Node, Offer
from tests import world

pytestmark = pytest.mark.django_db
H100 = "h100-sxm"


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch):
    """To clear again for all: how much there is depends on how long the round took."""
    monkeypatch.setattr(explaining, "_CLEAR_S", 1e9)


@pytest.fixture
def supplier(now):
    return world.org("Supplier", now=now)


@pytest.fixture
def told(now):
    """What a job is told by a round, the first at `now`."""
    rounds = iter(range(1000))

    def told(job: Job) -> explaining.JobTold:
        at = now + timedelta(seconds=5 * next(rounds))
        Node.objects.update(last_seen_at=at)
        clearing.clear_market(now=at)
        job.refresh_from_db()
        found = explaining.of_job(job)
        assert found is not None
        return found

    return told


def accept(job: Job, change: explaining.Helps, now) -> Job:
    """Makes the change as the job's buyer."""
    return changes.accept(
        job, term=change.term, to=str(change.to), gpu_class=change.gpu_class,
        by=job.created_by, now=now,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("job", "node", "says"),
    [
        ({"memory_bytes": 100 * world.GIB}, {}, "1 × needs 100.0 GiB on each GPU, it has 80.0"),
        ({"regions": ["us-east"]}, {}, "1 × in region eu-west"),
        ({"egress": ["example.org"]}, {},
         "1 × the owner lets jobs reach nothing outside, and this one lists names to reach"),
        ({"limits": {H100: 2 * MICRO}}, {"ask": 3 * MICRO},
         "h100-sxm costs 3.26087 a GPU-hour, and its limit is 2.00"),
        ({"gpus_min": 8, "gpus_max": 8}, {"gpus": 4},
         "it needs 8 GPUs in one node, and no node that it accepts has more than 4 free"),
    ],
)  # fmt: skip
def test_a_job_is_told_why_it_waits(buyer, supplier, told, now, job, node, says):
    world.agent(supplier, now=now, **node)
    found = world.job(buyer, now=now, **job)
    assert told(found).words == says
    assert jobview.look(found, now=now).words == f"waiting: {says}"


def test_before_its_first_round_a_job_is_told_nothing(buyer, now):
    view = jobview.look(world.job(buyer, now=now), now=now)
    assert (view.told, view.words) == (None, "waiting for the next round")


def test_where_all_is_let_a_job_is_told_so(buyer, supplier, told, now):
    world.agent(supplier, now=now)
    world.job(buyer, now=now, limits={H100: 9 * MICRO})
    clearing.clear_market(now=now)
    assert told(world.job(buyer, now=now)).words == "1 × its GPUs are let or held for another"


@pytest.mark.parametrize(
    ("job", "node", "change"),
    [
        ({"limits": {H100: 2 * MICRO}}, {"ask": 3 * MICRO}, ("limit", 3_263_000)),
        ({"gpus_min": 8, "gpus_max": 8}, {"gpus": 4}, ("gpus", 4)),
        ({"regions": ["us-east"]}, {}, ("region", "eu-west")),
        ({"trust": 2}, {}, ("trust", "community")),
        ({"tier": 0}, {}, ("tier", "unproven")),
    ],
)
def test_what_a_job_is_told_places_it_once_it_is_done(
    buyer, supplier, told, now, job, node, change
):
    world.agent(supplier, now=now, **node)
    waits = world.job(buyer, now=now, **job)
    [helps] = told(waits).changes
    assert (helps.term, helps.to) == change
    accept(waits, helps, now)
    assert clearing.clear_market(now=now + timedelta(seconds=10)) == 1
    assert waits.story().filter(event="change").count() == 1


def minutes(now, hour: int) -> int:
    """Of the week at that hour of the day of `now`."""
    return now.weekday() * 1440 + hour * 60


def test_an_offer_that_opens_later_is_what_a_job_is_told_to_wait_for(buyer, supplier, told, now):
    opens = [[minutes(now, 18), minutes(now, 22)]]
    site = world.agent(supplier, now=now, windows=opens, ask=2 * MICRO).node.site
    world.agent(supplier, now=now, ask=4 * MICRO)
    waits = world.job(buyer, now=now, limits={H100: 3 * MICRO})
    wait, raise_it = told(waits).changes
    assert (wait.term, wait.to) == ("wait", "2026-11-24T18:00:00+00:00")
    assert wait.words == (
        f"wait until Tuesday 18:00 UTC: an offer of h100-sxm at {site.name} (eu-west) opens then,"
        " and its limit is enough for 1 × h100-sxm there"
    )
    assert raise_it.term == "limit"
    evening = now.replace(hour=18)
    Node.objects.update(last_seen_at=evening)
    assert clearing.clear_market(now=evening) == 1


@pytest.mark.parametrize(
    ("job", "node"),
    [
        ({"limits": {H100: 1 * MICRO}}, {"ask": 2 * MICRO}),
        ({"memory_bytes": 100 * world.GIB}, {}),
        ({"gpus_min": 2, "gpus_max": 2}, {"gpus": 1}),
        ({}, {"audience": "own_org"}),
        ({}, {"state": "draining"}),
    ],
)
def test_what_would_not_do_for_it_is_not_waited_for(buyer, supplier, told, now, job, node):
    opens = [[minutes(now, 18), minutes(now, 22)]]
    world.agent(supplier, now=now, windows=opens, **node)
    assert told(world.job(buyer, now=now, **job)).changes == ()


def test_the_ask_of_an_offer_that_is_closed_is_not_told(buyer, supplier, told, now):
    opens = [[minutes(now, 18), minutes(now, 22)]]
    world.agent(supplier, now=now, windows=opens, ask=1_234_567)
    found = told(world.job(buyer, now=now, limits={H100: 3 * MICRO}))
    [wait] = found.changes
    assert (wait.hourly_micros, wait.cost_micros) == (3 * MICRO, 3 * MICRO)
    assert "1.23" not in str(found)
    assert "1.34" not in str(found)


def test_a_gang_that_may_span_a_site_finds_one(buyer, supplier, told, now):
    first = world.agent(supplier, now=now, gpus=4, lan_address="10.0.0.1")
    world.agent(supplier, now=now, gpus=4, lan_address="10.0.0.2", site=first.node.site)
    waits = world.job(buyer, now=now, gpus_min=8, gpus_max=8)
    level = next(change for change in told(waits).changes if change.term == "level")
    assert level.words.startswith("accept a gang over several nodes of one site: 8 × h100-sxm")
    accept(waits, level, now)
    assert clearing.clear_market(now=now + timedelta(seconds=10)) == 1


def test_nodes_with_other_environments_are_no_gang_and_not_told_of(buyer, supplier, told, now):
    first = world.agent(supplier, now=now, gpus=4, lan_address="10.0.0.1")
    world.agent(supplier, now=now, gpus=4, lan_address="10.0.0.2", site=first.node.site,
                environment="f" * 64)  # fmt: skip
    waits = world.job(buyer, now=now, gpus_min=8, gpus_max=8)
    assert [change.term for change in told(waits).changes] == ["gpus"]


def test_a_class_is_told_of_once_however_its_machines_differ(buyer, supplier, told, now):
    for ask, memory in ((3 * MICRO, 80), (4 * MICRO, 141)):
        world.agent(supplier, now=now, ask=ask, gpu_memory=memory * world.GIB)
    waits = world.job(buyer, now=now, limits={H100: 2 * MICRO})
    world.job(buyer, now=now, memory_bytes=100 * world.GIB, limits={H100: 1 * MICRO})
    [helps] = told(waits).changes
    assert helps.words == "raise the limit on h100-sxm to 3.263: 1 × h100-sxm, 3.26 an hour"


def test_a_change_that_the_clearing_would_not_honour_is_not_told(buyer, supplier, told, now):
    """The idle node's ask is more than the other job's limit, and one cell has one price."""
    world.agent(supplier, now=now, ask=1 * MICRO)
    world.agent(supplier, now=now, ask=4 * MICRO)
    first = world.job(buyer, now=now, limits={H100: 2 * MICRO}, queued_at=now - timedelta(hours=9))
    waits = world.job(buyer, now=now, limits={H100: int(1.9 * MICRO)})
    found = told(waits)
    first.refresh_from_db()
    assert first.state == "placed"
    for change in found.changes:
        accept(waits, change, now)
        assert clearing.clear_market(now=now + timedelta(seconds=10)) == 1


def test_a_raise_must_be_covered_by_the_wallet(buyer, supplier, told, now):
    world.agent(supplier, now=now, ask=900 * MICRO)
    poor = world.org("Poor", now=now, wallet=MICRO)
    waits = world.job(poor, now=now)
    [helps] = told(waits).changes
    with pytest.raises(NotEnoughMoney, match="top it up"):
        accept(waits, helps, now)


@pytest.mark.parametrize(
    ("term", "to", "gpu_class"),
    [
        ("limit", "1000000", H100), ("limit", "9000000", "rtx-4090"), ("limit", "-1", H100),
        ("limit", "9" * 12, H100), ("gpus", "1", ""), ("gpus", "0", ""), ("level", "site", ""),
        ("region", "eu-west", ""), ("trust", "nobody", ""), ("trust", "contracted", ""),
        ("tier", "unproven", ""), ("window", "0", ""), ("", "", ""),
    ],
)  # fmt: skip
def test_what_would_not_make_it_easier_to_place_is_refused(buyer, now, term, to, gpu_class):
    job = world.job(buyer, now=now)
    with pytest.raises(Invalid):
        changes.accept(job, term=term, to=to, gpu_class=gpu_class, by=job.created_by, now=now)


def test_a_job_that_no_longer_waits_is_not_changed(buyer, supplier, node, now):
    job = world.job(buyer, now=now)
    world.lease(job, node, now=now)
    with pytest.raises(Conflict, match="no longer waits"):
        changes.accept(job, term="tier", to="unproven", gpu_class="", by=job.created_by, now=now)


def test_an_idle_node_is_told_the_ask_that_would_have_let_it(buyer, supplier, now):
    world.agent(supplier, now=now, ask=1 * MICRO)
    dear = world.agent(supplier, now=now, ask=3 * MICRO)
    world.job(buyer, now=now)
    clearing.clear_market(now=now)
    told = board.line(dear.node, now=now).told
    assert told is not None
    assert told.why == "dear"
    assert told.words.startswith("its ask was above what its like was let for, 1.00; at ")
    assert told.let_at_micros is not None
    assert told.let_at_micros <= 1 * MICRO


def test_where_there_is_time_for_one_idle_nodes_are_told_their_ask_by_turns(
    buyer, supplier, now, monkeypatch
):
    """A round that takes a second, and two for clearing again: one for jobs, one for offers."""
    cleared = clearing._cleared
    monkeypatch.setattr(clearing, "_cleared", lambda *of: replace(cleared(*of), seconds=1.0))
    monkeypatch.setattr(explaining, "_CLEAR_S", 2.0)
    nodes = [world.agent(supplier, now=now, ask=(7 + n) * MICRO).node for n in range(3)]
    world.job(buyer, now=now)
    looks = []
    for round in range(4):
        at = now + timedelta(seconds=40 * round)
        Node.objects.update(last_seen_at=at)
        clearing.clear_market(now=at)
        looks.append([board.line(node, now=at).told for node in nodes])
    asks = [
        sum(bool(told.let_at_micros or told.lowest_tried_micros) for told in look) for look in looks
    ]
    assert asks[0] == 1, "of new ones any is the first"
    assert asks == sorted(asks), "and keeps what it was told"
    assert asks[-1] == 3
    assert len({told.at for told in looks[-1]}) == 3


def test_a_new_ask_as_told_lets_the_node(buyer, supplier, now):
    cheap = world.agent(supplier, now=now, ask=1 * MICRO)
    dear = world.agent(supplier, now=now, ask=3 * MICRO)
    world.job(buyer, now=now)
    clearing.clear_market(now=now)
    told = board.line(dear.node, now=now).told
    # As if that round had not been: the cheap node is free, the job waits.
    LeasedGpu.objects.update(released_at=now)
    Job.objects.update(state="queued")
    Lease.objects.update(state="ended", end_reason="cancelled", ended_at=now)
    Offer.objects.filter(node=dear.node).update(ask_micros=told.let_at_micros)
    assert clearing.clear_market(now=now + timedelta(seconds=5)) == 1
    assert Lease.objects.live().get().assignments.get().node == dear.node != cheap.node


def test_an_idle_node_is_told_what_the_jobs_wanted_that_it_has_not(buyer, supplier, now):
    node = world.agent(supplier, now=now, scripts=False).node
    world.job(buyer, now=now, script=None, memory_bytes=100 * world.GIB)
    world.job(buyer, now=now, limits={"rtx-4090": MICRO})
    clearing.clear_market(now=now)
    said = board.line(node, now=now).told.words
    assert "none of 2 waiting jobs could run on it" in said
    assert "1 × needs 100.0 GiB on each GPU, it has 80.0" in said
    assert "1 × h100-sxm is not among the accepted classes" in said


def test_what_an_offer_was_told_long_ago_is_said_no_more(buyer, supplier, now):
    node = world.agent(supplier, now=now, ask=9 * MICRO).node
    world.job(buyer, now=now)
    clearing.clear_market(now=now)
    later = now + timedelta(minutes=11)
    assert board.line(node, now=now).told is not None
    assert board.line(node, now=later).told is None


def test_nobody_else_reads_limits_or_asks_out_of_what_is_told(buyer, supplier, told, now):
    """A loser is told the price, and not how much more the winner would have paid."""
    world.agent(supplier, now=now, ask=1 * MICRO)
    world.job(world.org("Rich", now=now, wallet=1000 * MICRO), now=now, limits={H100: 77 * MICRO})
    waits = world.job(buyer, now=now, limits={H100: 2 * MICRO})
    assert "77" not in str(told(waits))


def test_each_is_looked_at_again_after_a_while_those_first_that_waited_longest(
    buyer, supplier, told, now, monkeypatch
):
    world.agent(supplier, now=now, ask=9 * MICRO)
    monkeypatch.setattr(explaining, "_MOST", 2)
    jobs = [world.job(buyer, now=now) for _ in range(3)]
    told(jobs[0])
    assert Told.objects.filter(pk__in=[job.pk for job in jobs]).count() == 2
    told(jobs[2])
    assert Told.objects.get(pk=jobs[0].pk).looked_at == now


def test_telling_asks_as_often_for_many_as_for_one(
    buyer, supplier, now, django_assert_max_num_queries
):
    for _ in range(3):
        world.agent(supplier, now=now, ask=9 * MICRO)
    for _ in range(5):
        world.job(buyer, now=now)
    # The round's: jobs, offers with GPUs, sites and outcomes, the lock, the commit's second look,
    # the round and its record. Then four of ours: when each was looked at, what opens later, what is
    # told, what is forgotten. And three for displacement: what is held and free, who might leave, and
    # whether anything is held.
    with django_assert_max_num_queries(24):
        clearing.clear_market(now=now)
    assert Told.objects.count() == 8
