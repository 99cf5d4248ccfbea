"""A registry of a few tiny container images: what its protocol asks of one that is read only."""

import gzip
import hashlib
import http.server
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from tests.serving import on_loopback, running

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
_TOKEN = "anybody"


class Registry:
    """Serve it with `served`. `gets` are the paths that somebody asked for."""

    def __init__(self) -> None:
        self.blobs: dict[str, tuple[str, bytes]] = {}
        """Digest → media type, content."""
        self.tags: dict[str, str] = {}
        """repository:tag → digest."""
        self.gets: list[str] = []
        self.is_away = False
        self.asks = False
        """Whether it wants a token, which it gives to anybody."""
        self.sends_on = False
        """Whether layers lie on another host, which would refuse a token."""
        self.names_digests = True
        """Whether it says what a tag means without sending it."""
        self.token = (200, f'{{"token": "{_TOKEN}"}}'.encode())
        """How it answers who wants one: a status and a body."""
        self.port = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add(
        self,
        name: str,
        *layers: bytes,
        env: Mapping[str, str] | None = None,
        architecture: str = "amd64",
        index: bool = False,
        kind: str = LAYER,
        more: Mapping[str, object] | None = None,
    ) -> str:
        """An image `repository:tag` of these layers (`layer`); its digest. `index`: what the tag
        names is a list of images by platform, with this one in it. `kind`: its layers' type; `more`: what else it says of itself."""
        facts = {"architecture": architecture, "os": "linux"}
        config = self._put(_CONFIG, {
            **facts,
            **(more or {}),
            "config": {"Env": [f"{key}={value}" for key, value in (env or {}).items()]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(data) for data in layers]},
        })  # fmt: skip
        manifest = self._put(_MANIFEST, {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": config,
            "layers": [self._keep(kind, data) for data in layers],
        })  # fmt: skip
        if index:
            listed = {**manifest, "platform": facts}
            manifest = self._put(
                _INDEX, {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [listed]}
            )
        self.tags[name] = str(manifest["digest"])
        return self.tags[name]

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """What lies at a path under /v2/."""
        repository, _, rest = path.rpartition("/manifests/")
        if repository:
            return self.blobs.get(self.tags.get(f"{repository}:{rest}", rest))
        return self.blobs.get(path.rpartition("/blobs/")[2])

    def _put(self, kind: str, content: Mapping[str, object]) -> dict[str, object]:
        return self._keep(kind, json.dumps(content).encode())

    def _keep(self, kind: str, data: bytes) -> dict[str, object]:
        self.blobs[_digest(data)] = (kind, data)
        return {"mediaType": kind, "digest": _digest(data), "size": len(data)}


def layer(
    files: Mapping[str, str | bytes],
    *,
    links: Mapping[str, str] | None = None,
    hard: Mapping[str, str] | None = None,
    folders: Sequence[str] = (),
    packed: bool = False,
) -> bytes:
    """A layer's archive: folders first, then path → content, and path → what it links to."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for path in folders:
            entry = tarfile.TarInfo(path)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o700
            archive.addfile(entry)
        for path, text in files.items():
            data = text.encode() if isinstance(text, str) else text
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(data), 0o700 if data[:2] == b"#!" else 0o600
            if data[:4] == b"\x7fELF":
                entry.mode = 0o755
            archive.addfile(entry, io.BytesIO(data))
        for path, target in (links or {}).items():
            entry = tarfile.TarInfo(path)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
        for path, target in (hard or {}).items():
            entry = tarfile.TarInfo(path)
            entry.type, entry.linkname = tarfile.LNKTYPE, target
            archive.addfile(entry)
    return gzip.compress(raw.getvalue(), mtime=0) if packed else raw.getvalue()


@contextmanager
def served(registry: Registry) -> Iterator[Registry]:
    """The registry, reachable until the end."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            registry.gets.append(self.path)
            if self.path.startswith("/token"):
                status, said = registry.token
                self.send_response(status)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)
                return
            path = self.path.removeprefix("/v2/")
            if path.startswith("/elsewhere/"):
                assert self.headers["Authorization"] is None
                assert not self.headers["Host"].startswith("127.")
                self._answer(*registry.blobs[path.removeprefix("/elsewhere/")])
                return
            if registry.asks and self.headers["Authorization"] != f"Bearer {_TOKEN}":
                self.send_response(401)
                realm = f'Bearer realm="http://{registry.host}/token",service="tests"'
                self.send_header("WWW-Authenticate", realm)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if registry.sends_on and "/blobs/" in path:
                self.send_response(307)
                at = f"http://localhost:{registry.port}/elsewhere/"
                self.send_header("Location", at + path.rpartition("/blobs/")[2])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            found = ("application/json", b"{}") if not path else registry.answer(path)
            if registry.is_away or found is None:
                self.send_error(503 if registry.is_away else 404)
                return
            self._answer(*found)

        def _answer(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if registry.names_digests:
                self.send_header("Docker-Content-Digest", _digest(body))
            self.end_headers()
            if self.command == "GET":
                with suppress(BrokenPipeError):
                    self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with running(on_loopback(Handler)) as server:
        registry.port = server.server_port
        yield registry


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
