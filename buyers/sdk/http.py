"""One way to ask the market: patient with the network, plain about a no."""

import time
from collections.abc import Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import msgspec

from buyers.sdk.errors import GridloomError, MarketRefused, Unreachable
from buyers.sdk.shapes import Problem

Shape = TypeVar("Shape")

_AWAY: Final = frozenset({502, 503, 504})
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 4.0


class Http:
    """Calls to one market under one key. Retries what may safely be sent twice."""

    def __init__(self, url: str, key: str | None, *, patience_s: float) -> None:
        """`key`: None for what is public. `patience_s`: how long to go on trying while there is no
        answer."""
        self.url = url.rstrip("/")
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).netloc:
            raise GridloomError(f"the market's address is like https://market.example, not {url!r}")
        if key is not None and not (key.isascii() and key.isprintable() and key):
            raise GridloomError("an API key is needed, like glk_…; make one in your account")
        self._patience_s, self.key = patience_s, key or ""
        self._client = httpx.Client(
            base_url=f"{self.url}/api/v1/",
            headers={"Accept": "application/json"}
            | ({"Authorization": f"Bearer {key}"} if key is not None else {}),
            timeout=httpx.Timeout(60, connect=5),
        )

    def close(self) -> None:
        """Ends the connections."""
        self._client.close()

    def get(self, path: str, shape: type[Shape], **params: str) -> Shape:
        """Asks."""
        return self._decoded(self._send("GET", path, params=params, again=True), shape)

    def post(
        self, path: str, shape: type[Shape], body: Mapping[str, Any] | None = None, *,
        again: bool = True,
    ) -> Shape:  # fmt: skip
        """Does. `again`: may be repeated under its Idempotency-Key, or repeats to no effect."""
        answer = self._send("POST", path, body=body or {}, again=again)
        return self._decoded(answer, shape)

    def delete(self, path: str) -> None:
        """Does away with it; again is harmless."""
        self._send("DELETE", path, again=True)

    def pages(self, path: str, shape: type[Shape], **params: str) -> list[Shape]:
        """All of a list, page by page."""
        found: list[Shape] = []
        while True:
            page = self.get(path, _Page, **params)
            found += [msgspec.convert(row, shape, strict=False) for row in page.results]
            cursor = httpx.URL(page.next).params.get("cursor") if page.next else None
            if not cursor:
                return found
            params["cursor"] = cursor

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        again: bool,
    ) -> httpx.Response:
        headers = {"Content-Type": "application/json", "Idempotency-Key": str(uuid4())}
        content = None if body is None else _encoded(body)
        deadline, pause = time.monotonic() + self._patience_s, _FIRST_PAUSE_S
        while True:
            try:
                answer = self._client.request(
                    method, path, params=params or None, content=content,
                    headers=headers if method == "POST" else None,
                )  # fmt: skip
            except httpx.TransportError as error:
                why = str(error) or type(error).__name__
                # Never sent, so it may be tried again whatever it is.
                unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            else:
                if answer.status_code not in _AWAY:
                    return self._checked(answer)
                why, unsent = _problem(answer).message, False
            if not (again or unsent) or time.monotonic() + pause > deadline:
                raise Unreachable(
                    f"{self.url} gives no answer ({why}). Check the address and your connection; "
                    "if the market is yours, check that it runs"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        problem = _problem(answer)
        message = problem.message
        if answer.status_code == 401:
            message += " (run `gridloom login`, or set GRIDLOOM_KEY)"
        raise MarketRefused(
            message, code=problem.code, field=problem.field, status=answer.status_code
        )

    def _decoded(self, answer: httpx.Response, shape: type[Shape]) -> Shape:
        try:
            return msgspec.json.decode(answer.content, type=shape)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unreachable(
                f"{self.url} answers, but not like a market ({error}). Check the address, or "
                "update the SDK"
            ) from None


class _Page(msgspec.Struct, frozen=True):
    results: list[Any]
    next: str | None = None


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except (TypeError, ValueError) as error:
        raise GridloomError(f"this can't be sent as JSON: {error}") from None


def _problem(answer: httpx.Response) -> Problem:
    try:
        return msgspec.json.decode(answer.content, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Problem(f"http_{answer.status_code}", f"HTTP {answer.status_code}")
