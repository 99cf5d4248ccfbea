"""Sites, nodes and offers: what a supplier sets, and what the market holds them to."""

import pytest

from agent.protocol import Sandbox
from marketplace.core.errors import Conflict, Invalid, InvalidTransition
from marketplace.core.hardware import Network, Trust
from suppliers import inventory as inventories
from suppliers import offers, services
from suppliers.models import Gpu, Node, Offer, Site
from suppliers.offers import Terms
from suppliers.services import SiteFacts
from tests.suppliers.conftest import make_ready
from tests.suppliers.machine import Machine, gpu_device, inventory


def test_a_site_begins_with_the_least_trust_whatever_its_supplier_says(site):
    assert site.trust == Trust.COMMUNITY
    services.edit_site(
        site, SiteFacts(name="Cellar", region="eu-west", network=Network.INFINIBAND, pue=1.4)
    )
    again = Site.objects.get(pk=site.pk)
    assert (again.network, again.pue, again.trust) == (Network.INFINIBAND, 1.4, Trust.COMMUNITY)


def test_a_sites_name_is_its_orgs_own(site, org, now):
    with pytest.raises(Conflict, match="already"):
        services.create_site(org, SiteFacts(name=" Cellar ", region="uk"), now=now)


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"region": "moon"}, "region"),
        ({"name": ""}, "name"),
        ({"pue": 0.5}, "pue"),
        ({"pue": float("nan")}, "pue"),
        ({"uplink_mbps": 0}, "uplink_mbps"),
        ({"carbon_g_per_kwh": float("inf")}, "carbon_g_per_kwh"),
        ({"tariff_micros_per_kwh": -1}, "tariff_micros_per_kwh"),
    ],
)
def test_a_site_that_cannot_be_is_refused_by_field(org, now, facts, field):
    with pytest.raises(Invalid) as caught:
        services.create_site(org, SiteFacts(**{"name": "A", "region": "uk", **facts}), now=now)
    assert caught.value.field == field


def test_a_vanished_gpu_is_kept_and_not_let(enrol, now):
    node, machine = enrol(
        machine=Machine(inventory=inventory(gpu_device("GPU-1"), gpu_device("GPU-2", 1)))
    )
    machine.inventory = inventory(gpu_device("GPU-2", 0))
    assert inventories.apply_inventory(node, machine.inventory, now=now)
    present = dict(Gpu.objects.values_list("uuid", "present"))
    assert present == {"GPU-1": False, "GPU-2": True}
    machine.inventory = inventory(gpu_device("GPU-1"), gpu_device("GPU-2", 1))
    inventories.apply_inventory(node, machine.inventory, now=now)
    assert set(Gpu.objects.values_list("present", flat=True)) == {True}


def test_listing_another_nodes_gpu_quarantines_and_changes_nothing_else(enrol, owner, now):
    node, machine = enrol("rack-1", Machine(inventory=inventory(gpu_device("GPU-1"))))
    make_ready(node, machine, by=owner, now=now)
    liar, _ = enrol("rack-2", Machine(inventory=inventory(gpu_device("GPU-2"))))
    claimed = inventory(gpu_device("GPU-2"), gpu_device("GPU-1", 1), cpu_cores=99)
    assert not inventories.apply_inventory(liar, claimed, now=now)
    liar.refresh_from_db()
    assert liar.state == "quarantined"
    assert "GPU-1 is listed by another node" in liar.story().get().reason
    assert liar.cpu_cores == 2
    assert Gpu.objects.get(uuid="GPU-1").node.name == "rack-1"


def test_a_node_that_drops_its_sandbox_is_quarantined(enrol, owner, now):
    node, machine = enrol()
    make_ready(node, machine, by=owner, now=now)
    bare = inventory(*machine.inventory.devices, rung="none")
    assert not inventories.apply_inventory(node, bare, now=now)
    assert node.state == "quarantined"


def test_a_sandbox_with_a_hole_says_how_many_attacks_got_through():
    holed = Sandbox(rung="bubblewrap", checks=32, held=31, harmful=1)
    assert "1 of 32" in inventories.sandbox_refusal(holed)


def test_drain_and_undrain_go_to_and_fro_and_only_so(enrol, owner, now):
    node, machine = enrol()
    with pytest.raises(InvalidTransition):
        services.drain(node, by=owner, now=now)
    make_ready(node, machine, by=owner, now=now)
    services.drain(node, by=owner, now=now)
    with pytest.raises(InvalidTransition):
        services.drain(node, by=owner, now=now)
    services.undrain(node, by=owner, now=now)
    assert [change.event for change in node.story()] == ["verify", "drain", "undrain"]
    assert node.story().last().by == owner.get_username()


def test_retiring_closes_the_offer_and_ends_the_session(node, owner, now):
    offers.create_offer(node, Terms(ask="1.00"), by=owner, now=now)
    Node.objects.filter(pk=node.pk).update(session=node.pk)
    services.retire(node, reason="sold", by=owner, now=now)
    assert Offer.objects.get().state == "closed"
    node.refresh_from_db()
    assert (node.state, node.session) == ("retired", None)


def test_a_new_price_is_a_new_offer(node, owner, now):
    first = offers.create_offer(node, Terms(ask="1.25", notice_s=120), by=owner, now=now)
    assert (first.ask_micros, first.notice_s, first.state) == (1_250_000, 120, "open")
    offers.pause(first, by=owner, now=now)
    second = offers.create_offer(node, Terms(ask="1.50"), by=owner, now=now)
    first.refresh_from_db()
    assert (first.state, second.state) == ("closed", "open")
    assert first.story().last().reason == "replaced by a new offer"


def test_an_offer_pauses_resumes_and_closes(node, owner, now):
    offer = offers.create_offer(node, Terms(ask="1"), by=owner, now=now)
    offers.pause(offer, by=owner, now=now)
    offers.resume(offer, by=owner, now=now)
    offers.close(offer, by=owner, now=now)
    with pytest.raises(InvalidTransition):
        offers.resume(offer, by=owner, now=now)


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ({"ask": "0"}, "ask"),
        ({"ask": "-1"}, "ask"),
        ({"ask": "NaN"}, "ask"),
        ({"ask": "1e3"}, "ask"),
        ({"ask": "1000.000001"}, "ask"),
        ({"ask": "0.0000001"}, "ask"),
        ({"ask": "1", "notice_s": -1}, "notice_s"),
        ({"ask": "1", "notice_s": 86_401}, "notice_s"),
        ({"ask": "1", "audience": "friends"}, "audience"),
        ({"ask": "1", "windows": [[5, 5]]}, "windows"),
        ({"ask": "1", "windows": [[0, 10_081]]}, "windows"),
        ({"ask": "1", "windows": [[0, 1]] * 51}, "windows"),
    ],
)
def test_terms_that_make_no_sense_are_refused_by_field(node, owner, now, terms, field):
    with pytest.raises(Invalid) as caught:
        offers.create_offer(node, Terms(**terms), by=owner, now=now)
    assert caught.value.field == field
    assert not Offer.objects.exists()


def test_a_retired_node_is_not_offered(node, owner, now):
    services.retire(node, reason="", by=owner, now=now)
    with pytest.raises(Conflict, match="retired"):
        offers.create_offer(node, Terms(ask="1"), by=owner, now=now)


def test_the_floor_is_the_power_of_an_hour(enrol, site):
    node, _ = enrol(machine=Machine(inventory=inventory(gpu_device("GPU-1"))))
    # 700 W at 0.25 a kWh, PUE 1.0
    assert offers.ask_floor(node) == 175_000


def test_an_owner_who_needs_the_machine_takes_it_off_the_market(node, now):
    services.note_owner(node, busy=True, why="somebody is at the keyboard")
    assert not Node.objects.filter(pk=node.pk, owner_busy=False).exists()
    services.note_owner(node, busy=False, why="")
    node.refresh_from_db()
    assert (node.owner_busy, node.owner_why) == (False, "")
