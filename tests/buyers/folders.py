"""Folders to upload in tests, and the way that a client sends them."""

import hashlib
from collections.abc import Mapping
from datetime import datetime

import httpx

from agent import protocol
from buyers import datasets
from buyers.models import Dataset
from marketplace.models import Org
from marketplace.storage import SignedPut

ROW = b'{"prompt": "What does f do?", "completion": "It adds."}\n'
TRAINING = {"train.jsonl": ROW * 5, "heldout.jsonl": ROW * 2}
SCRIPT = {"main.py": b"print('hello')\n", "lib/__init__.py": b""}


def declared(files: Mapping[str, bytes]) -> list[protocol.File]:
    """The files' paths, sizes and hashes."""
    return [
        protocol.File(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in files.items()
    ]


def send(put: SignedPut, data: bytes) -> int:
    """PUTs some bytes as any client would; the status it got."""
    headers = {**put.headers, "content-length": str(len(data))}
    return httpx.put(put.url, headers=headers, content=data, timeout=30).status_code


def upload(org: Org, name: str, files: Mapping[str, bytes], *, now: datetime) -> Dataset:
    """A committed version."""
    by = org.members.get()
    dataset, puts = datasets.start(org, name=name, files=declared(files), by=by, now=now)
    for path, put in puts.items():
        assert send(put, files[path]) == 200
    return datasets.commit(dataset, now=now)
