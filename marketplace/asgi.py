"""The two ASGI applications: `application` (pages and REST) and `agents` (nodes only).

They are one code base in two processes, so that a storm of reconnecting nodes can't slow a page.
"""

import gc
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")

from django.core.asgi import get_asgi_application

_django = get_asgi_application()

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402

import buyers.urls  # noqa: E402
import suppliers.urls  # noqa: E402
from scheduler import quoting  # noqa: E402
from suppliers import listening  # noqa: E402

_Asgi = Callable[[dict[str, Any], Any, Any], Awaitable[None]]
AGENT_PREFIX = "/agent/"
MAX_BODY: Final = 8 * 2**20
"""Twice what any address takes. Django keeps a whole body on disk before a view can refuse it."""
_TOO_LARGE: Final = f"a request's body is at most {MAX_BODY >> 20} MiB\n".encode()


def _only(app: _Asgi, wanted: Callable[[str], bool]) -> _Asgi:
    """Answers 404 to paths that belong to the other process."""

    async def routed(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if wanted(scope["path"]):
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return routed


def bounded(app: _Asgi) -> _Asgi:
    """Answers 413 to bodies that say they are over MAX_BODY, and to those that turn out to be."""

    async def limited(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if _announced(scope) > MAX_BODY:
            await _refuse(send)
            return
        taken = 0

        async def counted() -> dict[str, Any]:
            nonlocal taken
            message: dict[str, Any] = await receive()
            taken += len(message.get("body", b""))
            if taken <= MAX_BODY:
                return message
            await _refuse(send)
            # To the application the client is gone, so that it drops what it has.
            return {"type": "http.disconnect"}

        async def heard(message: dict[str, Any]) -> None:
            if taken <= MAX_BODY:
                await send(message)

        await app(scope, counted, heard)

    return limited


def _announced(scope: dict[str, Any]) -> int:
    """Content-Length; 0 where there is none, and for what the server would not let through."""
    said = dict(scope["headers"]).get(b"content-length", b"0")
    return int(said) if said.isdigit() else 0


async def _refuse(send: Any) -> None:
    """413, and the end of the connection: what is still on its way is not read."""
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": _TOO_LARGE})


def warm_up() -> None:
    """Loads the loops that quote. What is loaded by now stays to the end of the process, and the
    collector need not look through it again: each time that took a fifth of a second of a request."""
    quoting.warm_up()
    gc.collect()
    gc.freeze()


async def warming(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """ASGI's lifespan: the loops that quote are loaded while the first requests are answered."""
    await receive()
    threading.Thread(target=warm_up, name="warming", daemon=True).start()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


_bounded_django = bounded(_django)
application = ProtocolTypeRouter(
    {
        "http": _only(_bounded_django, lambda path: not path.startswith(AGENT_PREFIX)),
        # Only our own pages may open a user's socket (cross-site WebSocket hijacking).
        "websocket": AllowedHostsOriginValidator(
            AuthMiddlewareStack(URLRouter(buyers.urls.websocket_urls))
        ),
        "lifespan": warming,
    }
)
agents = ProtocolTypeRouter(
    {
        "http": _only(_bounded_django, lambda path: path.startswith(AGENT_PREFIX)),
        "websocket": URLRouter(suppliers.urls.websocket_urls),
        "lifespan": listening.lifespan,
    }
)
