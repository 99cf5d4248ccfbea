"""The agent attacks its own sandbox."""

import pytest

from agent.sandbox import bubblewrap, probe
from tests.agent.sandbox.jobs import PLAIN, rungs


@pytest.mark.parametrize("rung", rungs(), ids=lambda rung: rung.name)
def test_no_attack_on_the_sandbox_gets_anywhere(place, rung):
    report = probe.attack(place, rung)
    assert [check for check in report.checks if not check.held] == []
    assert report.rung == rung, report.weaker
    assert report.held == len(report.checks) >= 90
    assert list(place.iterdir()) == []


def test_the_same_attacks_go_through_where_there_is_no_sandbox(place):
    report = probe.attack(place, PLAIN)
    assert report.rung is None
    assert report.harmful >= 30, "the attacks have lost their teeth"
    assert any("host_loopback is open" in reason for reason in report.weaker)


def test_the_strongest_rung_is_found_and_its_weakness_named(place):
    report = probe.probe(place)
    assert report.rung in rungs()
    assert report.rung.limits == rungs()[-1].limits
    assert report.harmful == 0
    assert "watched once a second" in " ".join(report.weaker)


def test_a_host_without_a_sandbox_is_refused_unless_somebody_insists(place, monkeypatch):
    def missing():
        raise bubblewrap.NoSandbox("bubblewrap is missing: install it")

    monkeypatch.setattr(bubblewrap, "find_bwrap", missing)
    report = probe.probe(place)
    assert report.rung is None
    assert report.weaker == ["bubblewrap is missing: install it"]
    unsafe = probe.probe(place, unsafe_no_sandbox=True)
    assert unsafe.rung == PLAIN
    assert unsafe.harmful >= 30
    assert unsafe.weaker[-1] == "there is no sandbox"
