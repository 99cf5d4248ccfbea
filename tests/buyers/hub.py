"""A small hub on a real socket that speaks as Hugging Face's does, and misbehaves when told to.

Large files are led to a store under another host name, as a CDN would be; small ones come at once.
"""

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests import tiny_base
from tests.serving import running

TOKEN = "hf_let_me_in"


@dataclass
class Repository:
    """What the hub holds under one name. The commit follows the content."""

    files: dict[str, bytes]
    card: dict[str, Any] | None = field(default_factory=lambda: {"license": "apache-2.0"})
    gated: str | bool = False
    private: bool = False

    @property
    def commit(self) -> str:
        said = repr(sorted(self.files.items())).encode()
        return hashlib.sha1(said, usedforsecurity=False).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: "FakeHub"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.server.asked.append((self.path, dict(self.headers)))
        if self.server.down:
            self._say(503)
            return
        if parts[0] == "store":
            self._send(self.server.store[parts[1]], {})
            return
        if parts[:2] == ["api", "models"]:
            repo, revision = "/".join(parts[2:4]), "/".join(parts[5:])
            self._info(repo, revision)
            return
        repo, commit, path = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        self._resolve(repo, commit, path)

    def _may(self, name: str) -> Repository | None:
        """The repository, if the asker may read it; else the hub's own words are sent."""
        repo = self.server.repos.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or (repo.private and not known):
            self._say(404 if known else 401, "RepoNotFound")
            return None
        return repo

    def _info(self, name: str, revision: str) -> None:
        repo = self._may(name)
        if repo is None:
            return
        if revision not in ("main", repo.commit):
            self._say(404, "RevisionNotFound")
            return
        siblings = []
        for path, data in repo.files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": _git(data)}
            if path.endswith(".safetensors"):
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 133}
            siblings.append(entry)
        body = {
            "id": name, "sha": repo.commit, "private": repo.private, "gated": repo.gated,
            "cardData": repo.card, "tags": ["pytorch"], "siblings": siblings, "downloads": 7,
        }  # fmt: skip
        self._send(json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, commit: str, path: str) -> None:
        repo = self._may(name)
        if repo is None:
            return
        if repo.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._say(401, "GatedRepo")
            return
        if path not in repo.files:
            self._say(404, "EntryNotFound")
            return
        data = repo.files[path]
        told = {"X-Repo-Commit": repo.commit, "ETag": f'"{_git(data)}"'}
        if not path.endswith(".safetensors"):
            self._send(data, told)
            return
        sha256 = hashlib.sha256(data).hexdigest()
        self.server.store[sha256] = self.server.instead.get(path, data)
        self.send_response(302)
        for key, value in {
            **told, "X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(len(data)),
            "Location": f"{self.server.store_url}/store/{sha256}", "Content-Length": "0",
        }.items():  # fmt: skip
            self.send_header(key, value)
        self.end_headers()

    def _send(self, data: bytes, headers: dict[str, str]) -> None:
        start = 0
        asked = self.headers.get("Range")
        if asked:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self._say(416)
                return
        self.send_response(206 if asked else 200)
        rest = data[start:]
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for key, value in {**headers, "Content-Length": str(len(rest))}.items():
            self.send_header(key, value)
        self.end_headers()
        cut = self.server.cut_after
        if cut and self.path.startswith("/store/") and len(rest) > cut:
            self.wfile.write(rest[:cut])
            self.close_connection = True
            self.connection.close()
        else:
            self.wfile.write(rest)

    def _say(self, status: int, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class FakeHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repository] = {}
        self.store: dict[str, bytes] = {}
        self.instead: dict[str, bytes] = {}
        """Path → what the store sends in its place."""
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.cut_after = 0
        self.down = False
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.store_url = f"http://localhost:{self.server_address[1]}"

    def paths(self, beginning: str = "/") -> list[str]:
        return [path for path, _ in self.asked if path.startswith(beginning)]

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # it hung up on purpose


def model(tmp_path: Any, **more: bytes) -> dict[str, bytes]:
    """The files of a small model, with what a repository has beside."""
    folder = tiny_base.write(tmp_path / "hub-model")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    beside = {"README.md": b"# A model\n", "modeling.py": b"import os\n", "LICENSE": b"Apache\n",
              "pytorch_model.bin": b"\x80\x04pickle"}  # fmt: skip
    return {**files, **beside, **more}


def serving() -> AbstractContextManager[FakeHub]:
    return running(FakeHub())


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
