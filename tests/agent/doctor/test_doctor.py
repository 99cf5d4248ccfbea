"""The doctor says what this machine can do as a node, and what would help."""

import http.server
from collections.abc import Iterator

import pytest

from agent import doctor
from agent.sandbox import bubblewrap
from tests.serving import on_loopback, running


@pytest.fixture
def market() -> Iterator[str]:
    """Something that answers over HTTP and says what time it is."""
    with running(on_loopback(Quiet)) as server:
        yield f"http://127.0.0.1:{server.server_port}/"


class Quiet(http.server.BaseHTTPRequestHandler):
    """Answers 404, with a date an hour off below /late."""

    def do_GET(self):
        self.send_response_only(404)
        date = self.date_time_string() if self.path == "/" else "Tue, 24 Nov 2026 00:00:00 GMT"
        self.send_header("Date", date)
        self.end_headers()

    def log_message(self, *_):
        pass


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_a_machine_that_can_be_a_node_is_told_so(place, market, capsys):
    found = by_name(doctor.report(market, place))
    assert "attacks held off" in found["sandbox"].detail
    assert "torch" in found["training environment"].detail
    assert "answers 404" in found["market"].detail
    assert [name for name, finding in found.items() if not finding.ok] == []
    assert doctor.run_doctor(market, place) == 0
    assert "can be a node" in capsys.readouterr().out


def test_what_is_missing_is_named_with_what_to_do(place, monkeypatch, capsys):
    def missing():
        raise bubblewrap.NoSandbox("bubblewrap is missing: install [it]")

    monkeypatch.setattr(bubblewrap, "find_bwrap", missing)
    assert doctor.run_doctor("http://127.0.0.1:9/", place, "/no/python") == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "can't be a node yet: sandbox, training environment, market." in said
    assert "install [it]" in said
    assert "check the address" in said
    assert "/no/python does not run" in said


def test_a_clock_that_is_off_is_noticed(market):
    (reached, clock) = doctor._market(market + "late")
    assert reached.ok
    assert not clock.ok
    assert "timedatectl" in clock.advice
