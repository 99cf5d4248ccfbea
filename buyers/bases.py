"""Public bases: the models that everybody may start from, published once by the operator."""

from collections.abc import Mapping
from datetime import datetime
from hashlib import file_digest
from pathlib import Path
from typing import Any

import msgspec
from django.db import transaction

from agent import protocol
from buyers.models import Artifact
from marketplace import locks, storage
from marketplace.core.errors import Conflict, Invalid
from marketplace.core.ids import uuid7
from marketplace.files import check_path


def publish(
    folder: Path, *, name: str, licence: str, shape: Mapping[str, Any], now: datetime
) -> Artifact:
    """Puts a model's folder where every org may use it, under a name that stays its own.

    `shape` is the base's `marketplace.core.shapes.BaseShape` as plain values. The same folder
    again gives the same artifact, without sending a byte; one that was cut off is gone on with.
    Raises Conflict for another content under a name that is taken, Invalid for an empty folder.
    Sends to the network: not for use in a transaction.
    """
    files = _read(folder)
    artifact = _row(files, name=name, licence=licence, shape=shape, now=now)
    if artifact.committed_at is None:
        for file in files:
            _send(folder / file.path, storage.file_key(artifact.prefix, file.sha256), file)
        Artifact.objects.filter(pk=artifact.pk, committed_at=None).update(committed_at=now)
        artifact.refresh_from_db()
    return artifact


def _read(folder: Path) -> list[protocol.File]:
    """The folder's files with their hashes, sorted by path."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as content:
                digest = file_digest(content, "sha256").hexdigest()
            relative = check_path(path.relative_to(folder).as_posix())
            found.append(protocol.File(path=relative, bytes=path.stat().st_size, sha256=digest))
    if not found:
        raise Invalid(f"there are no files under {folder}")
    return sorted(found, key=lambda file: file.path)


@transaction.atomic
def _row(
    files: list[protocol.File],
    *,
    name: str,
    licence: str,
    shape: Mapping[str, Any],
    now: datetime,
) -> Artifact:
    digest = protocol.manifest_sha256(files)
    locks.hold(f"base {name}")
    known = Artifact.objects.filter(public=True, name=name).first()
    if known is not None:
        if known.sha256 != digest:
            raise Conflict(
                f"another model is already published as {name!r}, and others may build on it; "
                "publish this one under a new name"
            )
        return known
    pk = uuid7()
    return Artifact.objects.create(
        id=pk,
        name=name,
        public=True,
        licence=licence,
        shape=dict(shape),
        manifest=msgspec.to_builtins(files),
        sha256=digest,
        bytes=sum(file.bytes for file in files),
        prefix=storage.base_prefix(pk),
        created_at=now,
        state_since=now,
    )


def _send(path: Path, key: str, file: protocol.File) -> None:
    found = storage.stat(key)
    # Sent in parts, an object has no hash of its own; its size tells whether it is all there.
    if found is not None and found.bytes == file.bytes:
        return
    with path.open("rb") as content:
        storage.put(key, content)
