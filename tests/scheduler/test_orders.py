"""Quotes, takes and bids: honest before, exact at the moment, kind when it is too late."""

from dataclasses import replace
from datetime import timedelta

import pytest

from buyers.models import Dataset, Job
from marketplace.core.errors import (
    Conflict,
    Expired,
    Invalid,
    InvalidTransition,
    NotEnoughMoney,
)
from marketplace.core.money import MICRO, gross_ask, with_premium
from marketplace.core.specs import parse
from scheduler import jobs, lots, quoting
from scheduler.models import ClearingPrice, Lease, Round
from suppliers.models import Offer
from tests import world

pytestmark = pytest.mark.django_db
ASK = gross_ask(MICRO, take_bps=800)


@pytest.fixture
def who(buyer):
    return buyer.members.get()


@pytest.fixture
def script(buyer, now):
    return Dataset.objects.create(
        org=buyer, name="project", version=1, created_by="me", created_at=now, committed_at=now,
        manifest=[{"path": "main.py", "bytes": 3, "sha256": "a" * 64}], sha256="b" * 64, bytes=3,
        prefix="datasets/x/",
    )  # fmt: skip


@pytest.fixture
def wanted(script):
    def request(**changes):
        return parse(
            {
                "recipe": "script", "script": str(script.pk), "parameters": {"entry": "main.py"},
                "budget": "50", "memory_gib": 10, "hours": 2, **changes,
            }
        )  # fmt: skip

    return request


@pytest.fixture
def supplier(now):
    return world.org("Supplier", now=now)


class TestAQuote:
    def test_ranks_what_fits_by_cost_and_says_why_the_rest_does_not(
        self, buyer, supplier, wanted, now
    ):
        dear = world.agent(supplier, now=now, ask=2 * MICRO)
        cheap = world.agent(supplier, now=now, ask=MICRO)
        small = world.agent(supplier, now=now, gpu_memory=8 * world.GIB)
        quote = quoting.quote(buyer, wanted(), now=now)
        assert [option["node"] for option in quote.options] == [
            cheap.node.name, dear.node.name, small.node.name,
        ]  # fmt: skip
        assert [option["fits"] for option in quote.options] == [True, True, False]
        assert "10.0 GiB" in quote.options[2]["why"]

    def test_adds_up(self, buyer, supplier, wanted, now):
        world.agent(supplier, now=now)
        option = quoting.quote(buyer, wanted(), now=now).options[0]
        assert option["price_micros"] == ASK
        assert option["total"] == sum(line["micros"] for line in option["lines"])
        assert option["total"] == 2 * ASK
        assert option["total_low"] < option["total"] < option["total_high"]
        assert {line["label"] for line in option["lines"]} == {"GPU time", "Storage", "Transfer"}
        assert option["kwh"] == pytest.approx(1.4)

    def test_shows_the_last_clearing_price_where_that_is_more(self, buyer, supplier, wanted, now):
        node = world.agent(supplier, now=now)
        (row,) = lots.read(now=now)
        round = Round.objects.create(
            at=now, jobs=1, gpus=1, matched_jobs=1, matched_gpus=1, welfare=1, bound=1,
            make_whole=0, seconds=0, seed=0, book_sha256="",
        )  # fmt: skip
        ClearingPrice.objects.create(
            round=round, gpu_class=row.stands.gpu_class, slot=1, price_micros=3 * MICRO, gpus=1,
            cell=quoting.prices.cell_of(row.stands), at=now,
        )  # fmt: skip
        assert node.node.name
        assert quoting.quote(buyer, wanted(), now=now).options[0]["price_micros"] == 3 * MICRO

    def test_says_which_offers_would_cost_more_than_the_budget(self, buyer, supplier, wanted, now):
        world.agent(supplier, now=now, ask=40 * MICRO)
        option = quoting.quote(buyer, wanted(limit="100"), now=now).options[0]
        assert not option["fits"]
        assert "budget" in option["why"]

    def test_offers_a_sites_nodes_together_and_counts_what_the_network_costs(
        self, buyer, supplier, wanted, now
    ):
        first = world.agent(supplier, now=now, gpus=4, lan_address="10.0.0.1")
        site = first.node.site
        world.agent(supplier, now=now, gpus=4, lan_address="10.0.0.2", site=site)
        world.agent(supplier, now=now, gpus=4, site=site)
        world.agent(supplier, now=now, gpus=4, lan_address="10.0.0.3", environment="f" * 64)
        asked = wanted(gpus=8, level="site", kappa=0.5)
        options = quoting.quote(buyer, asked, now=now).options
        assert [len(option["seats"]) for option in options if option["fits"]] == [2]
        # Over Ethernet a gang that communicates half of its time loses 0.35 of that half.
        assert options[0]["seconds"] == pytest.approx(2 * 3600 / (1 - 0.35 * 0.5))
        assert options[0]["level"] == 1
        assert "no part in jobs of several nodes" in options[1]["why"]

    def test_takes_no_more_queries_for_more_offers(
        self, buyer, supplier, wanted, now, django_assert_max_num_queries
    ):
        for _ in range(8):
            world.agent(supplier, now=now)
        # Script and environments 2, classes 1, offers, sites, records and who is silent 4, speeds
        # 1, last prices 1; those of what is shown again, with rows and free GPUs, 6; the quote 1.
        with django_assert_max_num_queries(16):
            quoting.quote(buyer, wanted(), now=now)

    def test_shows_the_cheapest_and_counts_the_rest(self, buyer, supplier, wanted, now):
        for number in range(quoting.MAX_FIT + 2):
            world.agent(supplier, now=now, ask=MICRO + number)
        for _ in range(quoting.MAX_UNFIT + 1):
            world.agent(supplier, now=now, gpu_memory=8 * world.GIB)
        quote = quoting.quote(buyer, wanted(), now=now)
        assert [option["fits"] for option in quote.options] == [True] * quoting.MAX_FIT + [
            False
        ] * quoting.MAX_UNFIT
        assert (quote.more_fit, quote.more_unfit) == (2, 1)
        shown = [option["total"] for option in quote.options if option["fits"]]
        assert shown == sorted(shown)


class TestATake:
    def test_starts_at_the_price_shown(self, buyer, who, supplier, wanted, now):
        node = world.agent(supplier, now=now)
        quote = quoting.quote(buyer, wanted(), now=now)
        job = jobs.take(quote, option=0, by=who, now=now + timedelta(seconds=30))
        assert job.state == "placed"
        lease = Lease.objects.get()
        assert lease.price_micros == ASK
        assert lease.assignments.get().node == node.node

    def test_is_refused_when_the_quote_is_older_than_the_hold(
        self, buyer, who, supplier, wanted, now
    ):
        world.agent(supplier, now=now)
        quote = quoting.quote(buyer, wanted(), now=now)
        with pytest.raises(Expired, match="ask for a new one"):
            jobs.take(quote, option=0, by=who, now=now + timedelta(seconds=61))
        assert not Job.objects.exists()

    def test_is_refused_when_somebody_was_first(self, buyer, who, supplier, wanted, now):
        world.agent(supplier, now=now)
        first, second = (quoting.quote(buyer, wanted(), now=now) for _ in range(2))
        jobs.take(first, option=0, by=who, now=now)
        with pytest.raises(Conflict, match="first"):
            jobs.take(second, option=0, by=who, now=now)

    def test_is_refused_when_the_offer_has_closed(self, buyer, who, supplier, wanted, now):
        world.agent(supplier, now=now)
        quote = quoting.quote(buyer, wanted(), now=now)
        Offer.objects.update(state="closed")
        with pytest.raises(Conflict, match="no longer open"):
            jobs.take(quote, option=0, by=who, now=now)

    def test_happens_once_a_quote(self, buyer, who, supplier, wanted, now):
        world.agent(supplier, now=now, gpus=2)
        quote = quoting.quote(buyer, wanted(), now=now)
        jobs.take(quote, option=0, by=who, now=now)
        with pytest.raises(Conflict, match="already"):
            jobs.take(quote, option=0, by=who, now=now)

    def test_needs_an_option_that_fits(self, buyer, who, supplier, wanted, now):
        world.agent(supplier, now=now, gpu_memory=8 * world.GIB)
        quote = quoting.quote(buyer, wanted(), now=now)
        with pytest.raises(Invalid, match="doesn't fit"):
            jobs.take(quote, option=0, by=who, now=now)
        with pytest.raises(Invalid, match="no option 7"):
            jobs.take(quote, option=7, by=who, now=now)

    def test_needs_money_for_a_start(self, supplier, now):
        poor = world.org("Poor", now=now)
        script = Dataset.objects.create(
            org=poor, name="p", version=1, created_by="me", created_at=now, committed_at=now,
            manifest=[{"path": "main.py", "bytes": 3, "sha256": "a" * 64}], sha256="b" * 64,
            bytes=3, prefix="datasets/y/",
        )  # fmt: skip
        world.agent(supplier, now=now)
        request = parse(
            {"recipe": "script", "script": str(script.pk), "parameters": {"entry": "main.py"},
             "budget": "50", "memory_gib": 10, "hours": 2}
        )  # fmt: skip
        quote = quoting.quote(poor, request, now=now)
        with pytest.raises(NotEnoughMoney, match="top it up"):
            jobs.take(quote, option=0, by=poor.members.get(), now=now)
        assert not Job.objects.exists()

    def test_of_several_sites_is_refused_before_anyone_pays(self, buyer, supplier, wanted, now):
        world.agent(supplier, now=now, gpus=4)
        with pytest.raises(Invalid, match="several sites"):
            quoting.quote(buyer, wanted(gpus=8, level="any"), now=now)
        with pytest.raises(Invalid, match="a script has one number of GPUs"):
            quoting.quote(buyer, wanted(gpus=2, gpus_max=4), now=now)

    def test_that_would_miss_its_deadline_does_not_fit(self, buyer, supplier, wanted, now):
        world.agent(supplier, now=now)
        soon = (now + timedelta(hours=1)).isoformat()
        option = quoting.quote(buyer, wanted(deadline=soon), now=now).options[0]
        assert not option["fits"]


class TestABid:
    def test_waits_and_says_why(self, buyer, who, supplier, wanted, now):
        world.agent(supplier, now=now, gpu_memory=8 * world.GIB)
        job = jobs.submit(buyer, wanted(), by=who, now=now)
        assert job.state == "queued"
        assert job.limits["h100-sxm"] > 0

    def test_without_a_limit_bids_what_the_budget_allows(self, buyer, who, supplier, wanted, now):
        world.agent(supplier, now=now)
        job = jobs.submit(buyer, wanted(), by=who, now=now)
        assert job.limits["h100-sxm"] == 20 * MICRO  # 50 over 2.5 h, the slack included

    def test_is_refused_when_nothing_it_accepts_is_in_the_market(
        self, buyer, who, supplier, wanted, now
    ):
        with pytest.raises(Invalid, match="in the market"):
            jobs.submit(buyer, wanted(), by=who, now=now)

    def test_is_refused_when_the_budget_does_not_cover_a_save(
        self, buyer, who, supplier, wanted, now
    ):
        world.agent(supplier, now=now)
        with pytest.raises(Invalid, match="checkpoint"):
            jobs.submit(buyer, wanted(budget="0.01", limit="5"), by=who, now=now)


def test_a_stopped_job_goes_on_with_a_higher_budget(buyer, who, now):
    job = world.job(buyer, now=now, state="stopped", budget_micros=MICRO, spent_micros=MICRO)
    with pytest.raises(Invalid, match="budget"):
        jobs.resume(job, by=who, now=now)
    with pytest.raises(Invalid, match="already spent"):
        jobs.resume(job, by=who, now=now, budget="0.50")
    job = jobs.resume(job, by=who, now=now, budget="5")
    assert job.state == "queued"
    assert job.budget_micros == 5 * MICRO


def test_a_failed_job_can_not_be_resumed(buyer, who, now):
    job = world.job(buyer, now=now, state="failed")
    with pytest.raises(InvalidTransition):
        jobs.resume(job, by=who, now=now)


class TestAPremium:
    @pytest.fixture(autouse=True)
    def asked_for(self, settings):
        settings.POLICY = replace(settings.POLICY, premium_bps=1000)

    def test_is_a_line_of_the_quote_and_what_is_taken_costs_as_quoted(
        self, buyer, supplier, wanted, who, now
    ):
        world.agent(supplier, now=now)
        quote = quoting.quote(buyer, wanted(), now=now)
        option = quote.options[0]
        lines = {line["label"]: line["micros"] for line in option["lines"]}
        assert lines["Protection, 10 %"] == option["total"] - lines["GPU time"] > 0
        assert option["price_micros"] == with_premium(ASK, 1000)
        job = jobs.take(quote, option=0, by=who, now=now)
        assert (job.service, job.premium_bps) == ("protected", 1000)
        assert job.leases.get().price_micros == option["price_micros"]
        assert job.limits["h100-sxm"] >= option["price_micros"]

    def test_is_not_asked_of_an_interruptible_job(self, buyer, supplier, wanted, who, now):
        world.agent(supplier, now=now)
        quote = quoting.quote(buyer, wanted(service="interruptible"), now=now)
        assert {line["label"] for line in quote.options[0]["lines"]} == {
            "GPU time", "Storage", "Transfer",
        }  # fmt: skip
        job = jobs.take(quote, option=0, by=who, now=now)
        assert (job.service, job.premium_bps) == ("interruptible", 0)
        assert job.leases.get().price_micros == ASK

    def test_counts_against_the_limit(self, buyer, supplier, wanted, now):
        world.agent(supplier, now=now)
        limit = f"{ASK * 1.05 / MICRO:.4f}"
        option = quoting.quote(buyer, wanted(limit=limit), now=now).options[0]
        assert option["why"] == "its price is over the limit"
        kept = quoting.quote(buyer, wanted(limit=limit, service="interruptible"), now=now)
        assert kept.options[0]["fits"]
