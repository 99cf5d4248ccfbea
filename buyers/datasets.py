"""Datasets and code: the folders that buyers bring, as versions that never change.

A version is declared (paths, sizes, hashes), its files are sent straight to our storage by
presigned URLs, then it is committed after every file was found as declared and its rows as some
recipe reads them. A version that was
begun and not committed is gone on with by declaring the same files again.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

import msgspec
from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Sum

from agent import protocol
from buyers import checking
from buyers.models import Dataset
from marketplace import locks, storage
from marketplace.core.errors import Conflict, Invalid, TooLarge
from marketplace.core.ids import uuid7
from marketplace.files import check_path, check_together
from marketplace.models import Org
from marketplace.storage import SignedPut

MAX_FILES: Final = 10_000
MAX_FILE_BYTES: Final = 5 * 2**30
"""The largest that S3 takes in one PUT; more data goes into more files."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}")


def manifest(raw: object) -> list[protocol.File]:
    """The declared files from what came over the wire; raises Invalid naming what is wrong."""
    try:
        return msgspec.convert(raw, list[protocol.File])
    except msgspec.ValidationError as error:
        raise Invalid(
            f"files must be a list of {{path, bytes, sha256}}: {error}", field="files"
        ) from None


def start(
    org: Org, *, name: str, files: Sequence[protocol.File], by: User, now: datetime
) -> tuple[Dataset, dict[str, SignedPut]]:
    """A new version of the dataset `name`, and where to put each of its files.

    Declaring what the latest version already holds gives that version: with no PUTs if it is
    committed, with fresh ones if it was begun. Raises Invalid and TooLarge for files that can't
    be, Conflict if the org has begun too much that it has not committed.
    """
    name = _checked_name(name)
    declared = _checked(files)
    digest = protocol.manifest_sha256(declared)
    with transaction.atomic():
        # Two uploads at once must not both become version 2, nor both be the last that is let in.
        locks.hold(f"datasets {org.pk}")
        latest = Dataset.objects.of(org).filter(name=name).order_by("-version").first()
        if latest is not None and latest.sha256 == digest:
            dataset = latest
        else:
            _require_room(org, declared)
            pk = uuid7()
            dataset = Dataset.objects.create(
                id=pk,
                org=org,
                name=name,
                version=latest.version + 1 if latest else 1,
                manifest=msgspec.to_builtins(declared),
                sha256=digest,
                bytes=sum(file.bytes for file in declared),
                prefix=storage.dataset_prefix(pk),
                created_at=now,
                created_by=by.get_username(),
                state=Dataset.MACHINE.initial,
                state_since=now,
            )
    return dataset, ({} if dataset.committed_at else _puts(dataset, declared))


def commit(dataset: Dataset, *, now: datetime) -> Dataset:
    """Has a version looked through (`buyers.checking`); then it is ready, and never changes.

    A small one is looked at at once: raises Conflict naming the files that are missing or
    differ, Invalid naming file and row; then it may be mended and tried again. Others are left to
    a worker, in the state `checking`. Repeating a commit changes nothing. Reads from the network:
    not for use in a transaction.
    """
    if dataset.committed_at or dataset.state == "checking":
        return dataset
    declared = manifest(dataset.manifest)
    try:
        if not checking.at_once(declared):
            with transaction.atomic():
                return dataset.advance("check", now=now, detail="")
        found = checking.look(dataset, declared)
        return checking.settle(dataset, found, now=now)
    except Invalid as error:
        checking.refuse(dataset, str(error), now=now)
        raise
    except Conflict:
        dataset.refresh_from_db()
        if dataset.committed_at or dataset.state == "checking":
            return dataset
        raise


def discard(dataset: Dataset) -> None:
    """Removes a version that was begun and shall not be finished, with what was sent of it.

    Raises Conflict if it is committed. Writes to the network: not for use in a transaction.
    """
    with transaction.atomic():
        if not Dataset.objects.filter(pk=dataset.pk, committed_at=None).delete()[0]:
            raise Conflict(f"{dataset} is committed; only a version still begun can be discarded")
    declared = manifest(dataset.manifest)
    storage.delete({storage.file_key(dataset.prefix, file.sha256) for file in declared})


def _require_room(org: Org, files: Sequence[protocol.File]) -> None:
    """Needs the org's lock."""
    begun = Dataset.objects.of(org).filter(committed_at=None).aggregate(sum=Sum("bytes"))["sum"]
    most = settings.POLICY.uncommitted_bytes
    if (begun or 0) + sum(file.bytes for file in files) > most:
        raise Conflict(
            f"your organisation has begun {(begun or 0) / 2**30:.4g} GiB of uploads that are not "
            f"committed, and may have {most / 2**30:.4g}; finish one and commit it, or discard it "
            "(DELETE /api/v1/datasets/<id>/)"
        )


def _checked_name(name: str) -> str:
    name = " ".join(name.split())
    if not _NAME.fullmatch(name):
        raise Invalid(
            "a dataset's name is up to 100 letters, digits, spaces, dots, dashes and "
            f"underscores, and begins with a letter or digit; not {name[:120]!r}",
            field="name",
        )
    return name


def _checked(files: Sequence[protocol.File]) -> list[protocol.File]:
    """The same files sorted by path, within all limits."""
    if not files:
        raise Invalid("there are no files in it; add at least one", field="files")
    if len(files) > MAX_FILES:
        raise TooLarge(
            f"a version has at most {MAX_FILES:,} files, this one has {len(files):,}; "
            "pack small files together",
            field="files",
        )
    for file in files:
        check_path(file.path, field="files")
        if file.bytes > MAX_FILE_BYTES:
            raise TooLarge(
                f"a file has at most {MAX_FILE_BYTES >> 30} GiB; split {file.path!r} into several",
                field="files",
            )
    _check_together(files)
    checking.require_fit(files)
    return sorted(files, key=lambda file: file.path)


def _check_together(files: Sequence[protocol.File]) -> None:
    check_together([file.path for file in files])
    total, most = sum(file.bytes for file in files), settings.POLICY.dataset_bytes
    if total > most:
        raise TooLarge(
            f"a version has at most {most / 2**30:.4g} GiB, this one has {total / 2**30:.4g}",
            field="files",
        )


def _puts(dataset: Dataset, files: Iterable[protocol.File]) -> dict[str, SignedPut]:
    return {
        file.path: storage.signed_put(
            storage.file_key(dataset.prefix, file.sha256),
            size=file.bytes,
            sha256=file.sha256,
            seconds=settings.POLICY.upload_url_s,
        )
        for file in files
    }
