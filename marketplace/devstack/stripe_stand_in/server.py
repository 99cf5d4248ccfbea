"""The HTTP server, and the thread behind it that rings timers and sends webhooks."""

import base64
import binascii
import logging
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from marketplace.devstack.stripe_stand_in import pages
from marketplace.devstack.stripe_stand_in.api import (
    Answer,
    Request,
    answer,
    page_call,
    ring_due,
)
from marketplace.devstack.stripe_stand_in.calls import Call, Config
from marketplace.devstack.stripe_stand_in.errors import StripeError
from marketplace.devstack.stripe_stand_in.events import deliver_next
from marketplace.devstack.stripe_stand_in.store import Store

log = logging.getLogger(__name__)

_LARGEST_BODY: Final = 1 << 20
_TICK_S: Final = 0.05


class StandIn(ThreadingHTTPServer):
    """Listens on loopback only: whoever reaches it may make money out of nothing."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, store: Store, config: Config) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.store = store
        self.config = config
        self.base_url = f"http://127.0.0.1:{self.server_port}"
        self._stopping = threading.Event()
        # Two, so that a receiver that is slow to answer doesn't stop the clock.
        self._keepers = [
            threading.Thread(target=self._keep, args=[self._ring]),
            threading.Thread(target=self._keep, args=[self._deliver]),
        ]

    def serve_until_stopped(self) -> None:
        """Serves until `shutdown` is called from another thread or a signal handler's."""
        for thread in self._keepers:
            thread.start()
        self.serve_forever(poll_interval=0.1)
        self._stopping.set()
        for thread in self._keepers:
            thread.join()
        self.server_close()

    def _keep(self, do: Callable[[], bool]) -> None:
        while not self._stopping.is_set():
            if not do():
                self._stopping.wait(_TICK_S)

    def _ring(self) -> bool:
        return ring_due(self.store, self.config, self.base_url, time.time())

    def _deliver(self) -> bool:
        return deliver_next(self.store, self.config, time.time())


class _Page(NamedTuple):
    status: int
    html: str = ""
    location: str = ""


class _Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"
    server_version = "stripe-stand-in"
    # Head and body leave in one packet, or each answer would wait for a delayed ACK.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:
        log.info(format, *args)

    def _serve(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > _LARGEST_BODY:
            self.close_connection = True
            self._send(413, b"too large", {"Content-Type": "text/plain"})
            return
        body = self.rfile.read(int(length)).decode(errors="replace")
        url = urlsplit(self.path)
        if url.path == "/healthz":
            self._send(200, b"ok", {"Content-Type": "text/plain"})
        elif url.path.startswith("/v1/"):
            said = self._api(url.path, url.query if self.command != "POST" else body)
            self._send(*said)
        else:
            page = self._page(url.path, body)
            headers = {"Content-Type": "text/html; charset=utf-8", **_PAGE_HEADERS}
            if page.location:
                headers["Location"] = page.location
            self._send(page.status, page.html.encode(), headers)

    def _api(self, path: str, text: str) -> Answer:
        request = Request(
            self.command, path, text,
            key=self._key(),
            account=self.headers.get("Stripe-Account", ""),
            idempotency_key=self.headers.get("Idempotency-Key", ""),
        )  # fmt: skip
        return answer(self.server.store, self.server.config, self.server.base_url, request)

    def _key(self) -> str:
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        if kind == "Basic":
            try:
                return base64.b64decode(value).decode().partition(":")[0]
            except (binascii.Error, UnicodeDecodeError):
                return ""
        return value.strip()

    def _page(self, path: str, body: str) -> _Page:
        store, posted = self.server.store, self.command == "POST"
        try:
            call = page_call(store, self.server.config, self.server.base_url, body)
            with store.transaction():
                parts = path.strip("/").split("/")
                if len(parts) == 3 and parts[:2] == ["c", "pay"]:
                    return _checkout(call, parts[2], posted=posted)
                if len(parts) == 2 and parts[0] == "setup":
                    return _setup(call, parts[1], posted=posted)
        except StripeError as error:
            return _Page(error.status, pages.error_page(error))
        return _Page(404, pages.error_page(StripeError("There is no such page.")))

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


_PAGE_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
}


def _checkout(call: Call, pk: str, *, posted: bool) -> _Page:
    if not posted:
        return _Page(200, pages.checkout_page(call, pk))
    try:
        return _Page(303, location=pages.pay(call, pk))
    except StripeError as error:
        # The card was refused: the failed charge is kept, and the person may try another.
        if not error.kept:
            raise
        return _Page(402, pages.checkout_page(call, pk, error=str(error)))


def _setup(call: Call, token: str, *, posted: bool) -> _Page:
    expired = pages.expired_link(call, token)
    if expired:
        return _Page(303, location=expired)
    if not posted:
        return _Page(200, pages.setup_page(call, token))
    try:
        return _Page(303, location=pages.set_up(call, token))
    except StripeError as error:
        return _Page(error.status, pages.setup_page(call, token, error=str(error)))
