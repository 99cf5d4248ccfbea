"""The stand-in as a process, a client of the real SDK for it, and somebody to take webhooks."""

import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import IO, Any

import stripe

from tests.serving import on_loopback, running

SECRET_KEY = "sk_test_of_the_stand_in"
WEBHOOK_SECRET = "whsec_of_the_stand_in"


@dataclass
class StandIn:
    """A running stand-in."""

    url: str

    @property
    def client(self) -> Any:
        """The real SDK's `v1`, talking to the stand-in."""
        return client_of(self.url, SECRET_KEY)

    def wait_until_heard(self, kind: str) -> bool:
        """Whether, within 30 s, some event of that type has been taken by its receiver."""
        pause = threading.Event()
        for _ in range(600):
            events = self.client.events.list({"type": kind}).data
            if events and all(event.pending_webhooks == 0 for event in events):
                return True
            pause.wait(0.05)
        return False

    def pay(self, url: str, number: str = "4242424242424242") -> "Visit":
        """Does on the hosted page at `url` what a person would."""
        return self.submit(url, number=number, name="Ada Test", email="ada@example.org")

    def submit(self, url: str, **form: str) -> "Visit":
        """Sends the page's form."""
        return visit(url, urllib.parse.urlencode(form).encode())


def client_of(url: str, key: str) -> Any:
    """The real SDK's `v1`, sent elsewhere than to the real Stripe."""
    bases: Any = dict.fromkeys(("api", "files", "connect", "meter_events"), url)
    return stripe.StripeClient(key, base_addresses=bases, max_network_retries=0).v1


@dataclass
class Visit:
    status: int
    location: str
    text: str


@contextmanager
def stand_in(folder: Path, webhook_url: str = "", *options: str) -> Iterator[StandIn]:
    """Runs one on a free port with its data in `folder`; SIGTERM ends it."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "marketplace.devstack.stripe_stand_in", "--port", "0",
            "--data", str(folder), "--secret-key", SECRET_KEY, "--webhook-secret", WEBHOOK_SECRET,
            "--webhook-url", webhook_url, "--retry-s", "0.05", "--settle-s", "0.05",
            "--payout-s", "0.05", "--log-level", "ERROR", *options,
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on http://"), "the stand-in did not start"
        yield StandIn(line.split()[-1])
    finally:
        process.terminate()
        process.wait(timeout=30)
        assert process.stdout is not None
        process.stdout.close()


@dataclass
class Receiver:
    """Takes webhooks. `status` is what it answers; `wait` blocks until enough have come."""

    url: str = ""
    status: int = 200
    taken: list[tuple[bytes, str]] = field(default_factory=list)
    came: threading.Condition = field(default_factory=threading.Condition)

    def wait(self, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """The events so far, in order of arrival, as soon as `enough` says so."""
        with self.came:
            assert self.came.wait_for(lambda: enough(self.events), timeout=30), [
                event["type"] for event in self.events
            ]
            return self.events

    def wait_for(self, kind: str) -> dict[str, Any]:
        """The first event of that type."""
        events = self.wait(lambda events: any(event["type"] == kind for event in events))
        return next(event for event in events if event["type"] == kind)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Verified by the real SDK; raises for a forged one."""
        return [
            stripe.Webhook.construct_event(payload, header, WEBHOOK_SECRET).to_dict()
            for payload, header in self.taken
        ]


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A server on a free port that keeps every webhook it gets."""
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with kept.came:
                status = kept.status
                kept.taken.append((body, self.headers["Stripe-Signature"]))
                kept.came.notify_all()
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with running(on_loopback(Handler)) as server:
        kept.url = f"http://127.0.0.1:{server.server_port}/"
        yield kept


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str,
        headers: HTTPMessage, newurl: str,
    ) -> None:  # fmt: skip
        return None


def visit(url: str, form: bytes | None = None) -> Visit:
    """One request by a browser that doesn't follow redirects."""
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        answer = opener.open(url, form, timeout=30)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return Visit(answer.status, answer.headers.get("Location", ""), answer.read().decode())
