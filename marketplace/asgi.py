"""The two ASGI applications: `application` (pages and REST) and `agents` (nodes only).

They are one code base in two processes, so that a storm of reconnecting nodes can't slow a page.
"""

import os
from collections.abc import Awaitable, Callable
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")

from django.core.asgi import get_asgi_application  # noqa: E402

_django = get_asgi_application()

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402

import buyers.urls  # noqa: E402
import suppliers.urls  # noqa: E402
from suppliers import listening  # noqa: E402

_Asgi = Callable[[dict[str, Any], Any, Any], Awaitable[None]]
AGENT_PREFIX = "/agent/"


def _only(app: _Asgi, wanted: Callable[[str], bool]) -> _Asgi:
    """Answers 404 to paths that belong to the other process."""

    async def routed(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if wanted(scope["path"]):
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return routed


application = ProtocolTypeRouter(
    {
        "http": _only(_django, lambda path: not path.startswith(AGENT_PREFIX)),
        # Only our own pages may open a user's socket (cross-site WebSocket hijacking).
        "websocket": AllowedHostsOriginValidator(
            AuthMiddlewareStack(URLRouter(buyers.urls.websocket_urls))
        ),
    }
)
agents = ProtocolTypeRouter(
    {
        "http": _only(_django, lambda path: path.startswith(AGENT_PREFIX)),
        "websocket": URLRouter(suppliers.urls.websocket_urls),
        "lifespan": listening.lifespan,
    }
)
