"""An HTTP server that misbehaves on purpose, on a real socket."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.serving import running


class Request(BaseHTTPRequestHandler):
    """What was asked; a script of the test's answers it."""

    server: "Server"

    def _handle(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(size)
        self.server.seen.append(self)
        self.server.script(self)

    do_GET = do_POST = do_PUT = _handle  # noqa: N815 (the library's names)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A whole answer."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def cut(self, body: bytes, *, after: int, status: int = 200) -> None:
        """An answer whose connection breaks after some bytes of its body."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:after])
        self.hang_up()

    def hang_up(self) -> None:
        """No more answer at all."""
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, script: Callable[[Request], None]) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.script, self.seen = script, list[Request]()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # it hung up on purpose


def serving(script: Callable[[Request], None]) -> AbstractContextManager[Server]:
    """A server that answers by `script`."""
    return running(Server(script))
