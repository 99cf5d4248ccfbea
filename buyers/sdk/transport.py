"""HTTP to the market: one place for keys, retries, errors and decoding."""

import time
from collections.abc import Mapping
from typing import Any, Final, TypeVar
from uuid import uuid4

import httpx
import msgspec

from buyers.sdk.errors import MarketRefused, Unreachable

_Result = TypeVar("_Result")
_TIMEOUT: Final = httpx.Timeout(30.0, connect=5.0)
_TRIES: Final = 4
# The market is away for a moment, or a proxy before it.
_PASSING: Final = frozenset({502, 503, 504})


class Transport:
    """Calls of the REST API, as one org. Not for use by several threads at once."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=f"{self.url}/api/v1/",
            headers={"Authorization": f"Bearer {key}", "User-Agent": "gridloom-sdk/0.1"},
            timeout=_TIMEOUT,
        )

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def get(self, path: str, kind: type[_Result], **params: str) -> _Result:
        """GET, decoded as `kind`."""
        return self._decode(self._send("GET", path, params=params), kind)

    def post(
        self, path: str, kind: type[_Result], body: Mapping[str, Any] | None = None
    ) -> _Result:
        """POST, decoded as `kind`. Sent again if the answer is lost: it takes effect once."""
        headers = {"Idempotency-Key": str(uuid4())}
        return self._decode(self._send("POST", path, json=body or {}, headers=headers), kind)

    def pages(self, path: str, kind: type[_Result], **params: str) -> list[_Result]:
        """All pages of a list."""
        found: list[_Result] = []
        answer = self.get(path, dict, **params)
        while True:
            found += msgspec.convert(answer["results"], list[kind], strict=False)  # type: ignore[valid-type]
            if not answer.get("next"):
                return found
            answer = self.get(str(answer["next"]), dict)

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        for attempt in range(_TRIES):
            last = attempt == _TRIES - 1
            try:
                answer = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                if last:
                    raise Unreachable(
                        f"{self.url} does not answer ({error}); is the address right, and the "
                        "market up?"
                    ) from None
            else:
                if answer.status_code not in _PASSING or last:
                    return self._checked(answer)
            time.sleep(0.3 * 2**attempt)
        raise AssertionError("unreachable")

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        try:
            body = answer.json()
            message, code = str(body["message"]), str(body["code"])
            field = str(body.get("field", ""))
        except (ValueError, KeyError, TypeError):
            message, code, field = f"the market answered {answer.status_code}", "http", ""
        raise MarketRefused(message, code=code, status=answer.status_code, field=field)

    def _decode(self, answer: httpx.Response, kind: type[_Result]) -> _Result:
        try:
            return msgspec.json.decode(answer.content, type=kind, strict=False)
        except msgspec.DecodeError as error:
            raise Unreachable(
                f"{self.url} answers, but not as a market of this version does: {error}"
            ) from None
