"""A package index of a few tiny wheels, on loopback: the same protocol as the public one's."""

import hashlib
import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from tests.serving import on_loopback, running


class Index:
    """Serve it with `served`. `gets` are the paths that somebody asked for."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[str, bytes]] = {}
        """File name → package, content."""
        self.gets: list[str] = []
        self.is_away = False
        self.answers = threading.Event()
        """Cleared: whoever asks waits."""
        self.answers.set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/simple"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add(
        self,
        name: str,
        version: str = "1.0",
        *,
        code: str = "",
        requires: Sequence[str] = (),
        tag: str = "py3-none-any",
        more: Mapping[str, str] | None = None,
    ) -> str:
        """A wheel with one module of the package's name, and whatever `more` has; its SHA-256."""
        files = {f"{name}.py": code or f"VERSION = {version!r}\n", **(more or {})}
        data = _wheel(name, version, files, requires, tag)
        self.files[f"{name}-{version}-{tag}.whl"] = (name, data)
        return hashlib.sha256(data).hexdigest()

    def add_source(self, name: str, version: str = "1.0") -> None:
        """A package that has no wheel."""
        self.files[f"{name}-{version}.tar.gz"] = (name, b"not looked into")

    def page(self, package: str) -> bytes | None:
        files = [
            {
                "filename": file,
                "url": f"http://{self.host}/files/{file}",
                "hashes": {"sha256": hashlib.sha256(data).hexdigest()},
                "size": len(data),
            }
            for file, (name, data) in self.files.items()
            if name.replace("_", "-") == package
        ]
        if not files:
            return None
        return json.dumps(
            {"meta": {"api-version": "1.1"}, "name": package, "versions": [], "files": files}
        ).encode()


@contextmanager
def served(index: Index) -> Iterator[Index]:
    """The index, reachable until the end."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            index.answers.wait()
            index.gets.append(self.path)
            kind, _, name = self.path.strip("/").partition("/")
            body = index.page(name) if kind == "simple" else index.files.get(name, ("", None))[1]
            if index.is_away or body is None:
                self.send_error(503 if index.is_away else 404)
                return
            self.send_response(200)
            if kind == "simple":
                self.send_header("Content-Type", "application/vnd.pypi.simple.v1+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(BrokenPipeError):  # whoever asked may have been ended meanwhile
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with running(on_loopback(Handler)) as server:
        index.port = server.server_port
        try:
            yield index
        finally:
            index.answers.set()


def _wheel(
    name: str, version: str, files: Mapping[str, str], requires: Sequence[str], tag: str
) -> bytes:
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-says = {name}:main\n",
    }
    records = [f"{path},," for path in files] + [f"{info}/RECORD,,"]
    files[f"{info}/RECORD"] = "\n".join(records) + "\n"
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path, (2026, 1, 1, 0, 0, 0)), text)
    return raw.getvalue()
