"""An HTTP server of a test's own, on a free port of loopback."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

Server = TypeVar("Server", bound=ThreadingHTTPServer)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """The server, answering until the end."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def on_loopback(handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    """A server that answers by `handler`, once it is `running`."""
    return ThreadingHTTPServer(("127.0.0.1", 0), handler)
