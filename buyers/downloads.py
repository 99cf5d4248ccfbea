"""What is the buyer's to take away: folders as lists of URLs that read their files."""

from collections.abc import Sequence
from dataclasses import dataclass

from django.conf import settings

from buyers.models import Folder
from marketplace import storage
from marketplace.core.errors import Missing


@dataclass(frozen=True)
class Download:
    """A file of a folder, readable at `url` for `POLICY.upload_url_s` seconds."""

    path: str
    bytes: int
    sha256: str
    url: str


def files(folder: Folder) -> Sequence[Download]:
    """All files of a folder. Asks nobody: the URLs are only signed."""
    return [
        Download(
            path=entry["path"],
            bytes=entry["bytes"],
            sha256=entry["sha256"],
            url=url(folder, entry["path"]),
        )
        for entry in folder.manifest
    ]


def url(folder: Folder, path: str) -> str:
    """Where a browser may read one file of a folder; raises Missing if it has no such file."""
    found = [entry["sha256"] for entry in folder.manifest if entry["path"] == path]
    if not found:
        raise Missing(f"there is no file {path!r} in it")
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in path)
    return storage.signed_get(
        storage.file_key(folder.prefix, found[0]),
        seconds=settings.POLICY.upload_url_s,
        filename=name,
    )
