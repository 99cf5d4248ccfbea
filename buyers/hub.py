"""A model hub over HTTP, as Hugging Face's speaks it: the only module that knows its addresses.

`/api/models/<repo>/revision/<revision>` tells the commit, the licence and every file with its size
and hash; `/<repo>/resolve/<commit>/<path>` gives a file, mostly by a redirect to a store, and
takes a Range. The hub's own library isn't used: what it was sent is lost when its process ends,
it stops at 50 GB a file, and it would send whatever token the operator's home folder holds.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Self
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Struct

from marketplace.core.errors import Forbidden, Invalid, Missing, TooLarge, Unavailable

_REPO: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_REVISION: Final = re.compile(r"[A-Za-z0-9][\w./-]{0,199}", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_MOST_INFO: Final = 16 * 2**20
"""Bytes that a hub may tell about one repository: some 50,000 files."""
_REDIRECTS: Final = 5
_WAITS: Final = httpx.Timeout(30, connect=10)
_AGENT: Final = "gridloom"


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub describes it; what it doesn't tell is 0 or empty.

    `sha256` is of the content; `git_sha1` of small files is git's, over a header and the content.
    """

    path: str
    bytes: int = 0
    sha256: str = ""
    git_sha1: str = ""


@dataclass(frozen=True)
class Repo:
    """A repository at one commit. `closed`: private or gated."""

    name: str
    commit: str
    closed: bool
    licence: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class Stream:
    """A file's bytes from `start` on: the hub may have begun earlier than it was asked to."""

    start: int
    file: RemoteFile
    chunks: Iterator[bytes]


def check_name(repo: str) -> str:
    """The same name, if a repository can have it; raises Invalid."""
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise Invalid(
            f"a repository is named like organisation/model, not {repo[:80]!r}", field="repo"
        )
    return repo


def check_revision(revision: str) -> str:
    """The same revision, if there can be one of that name; raises Invalid."""
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise Invalid(
            f"a revision is a branch, a tag or a commit, like main, not {revision[:80]!r}",
            field="revision",
        )
    return revision


def is_commit(revision: str) -> bool:
    """Whether it names one commit for ever, and not a branch that moves."""
    return bool(_COMMIT.fullmatch(revision))


class Hub:
    """One hub, asked with one token or none. Raises Unavailable where it gives no answer."""

    def __init__(self, url: str, token: str = "") -> None:
        self._url = httpx.URL(url)
        self._token = token
        self._http = httpx.Client(timeout=_WAITS, headers={"User-Agent": _AGENT})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def look(self, repo: str, revision: str) -> Repo:
        """What a repository holds. Raises Missing, Forbidden, Unavailable."""
        path = f"/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true"
        with self._get(path, {}, what=f"{repo} at {revision}") as (answer, _):
            body = _whole(answer, _MOST_INFO, repo)
        try:
            info = msgspec.json.decode(body, type=_Info)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unavailable(f"the hub's answer about {repo} makes no sense: {error}") from None
        if not is_commit(info.sha):
            raise Unavailable(f"the hub names no commit for {repo} at {revision}")
        return Repo(
            name=info.id or repo,
            commit=info.sha,
            closed=info.private or bool(info.gated),
            licence=_licence(info),
            files=tuple(each.file() for each in info.siblings),
        )

    def read(self, repo: str, commit: str, path: str, *, most: int) -> bytes:
        """A small file, whole; raises TooLarge past `most` bytes."""
        with self.stream(repo, commit, RemoteFile(path)) as stream:
            found = bytearray()
            for chunk in stream.chunks:
                found += chunk
                if len(found) > most:
                    raise TooLarge(f"{path} of {repo} is larger than {most >> 20} MiB")
        return bytes(found)

    @contextmanager
    def stream(
        self, repo: str, commit: str, file: RemoteFile, *, start: int = 0
    ) -> Iterator[Stream]:
        """A file from `start` on, with all that is told of it on the way."""
        # Compressed, a length would not be the file's.
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        path = f"/{repo}/resolve/{commit}/{quote(file.path)}"
        with self._get(path, headers, what=f"{file.path} of {repo}") as (answer, told):
            if (at := told.get("x-repo-commit", commit)) != commit:
                raise Unavailable(f"the hub sends {file.path} of commit {at}, not of {commit}")
            begins = start if answer.status_code == 206 else 0
            yield Stream(begins, _completed(file, told), _chunks(answer, file.path))

    @contextmanager
    def _get(
        self, path: str, headers: Mapping[str, str], *, what: str
    ) -> Iterator[tuple[httpx.Response, dict[str, str]]]:
        """An answer that is no redirect, and the headers seen on the way to it.

        Redirects are followed by hand: the token is the hub's alone, and a hub that is spoken to
        in secret may not send us to where that ends.
        """
        url, told = self._url.join(path), dict[str, str]()
        for _ in range(_REDIRECTS):
            own = (url.scheme, url.host, url.port) == (
                self._url.scheme, self._url.host, self._url.port
            )  # fmt: skip
            secret = {"Authorization": f"Bearer {self._token}"} if self._token and own else {}
            try:
                with self._http.stream("GET", url, headers={**headers, **secret}) as answer:
                    if own:
                        told |= {name.lower(): value for name, value in answer.headers.items()}
                    if not answer.has_redirect_location:
                        _require_success(answer, what=what, known=bool(self._token))
                        yield answer, told
                        return
                    url = url.join(answer.headers["Location"])
            except httpx.HTTPError as error:
                why = str(error) or type(error).__name__
                raise Unavailable(f"the hub {self._url.host} does not answer ({why})") from None
            if url.scheme not in ("http", "https") or url.scheme < self._url.scheme:
                raise Unavailable(f"the hub leads {what} to {url.scheme}, which is not safe")
        raise Unavailable(f"the hub leads {what} round in circles")


class _Lfs(Struct, frozen=True):
    sha256: str = ""
    size: int = 0


class _Sibling(Struct, frozen=True, rename="camel"):
    rfilename: str
    size: int | None = None
    blob_id: str | None = None
    lfs: _Lfs | None = None

    def file(self) -> RemoteFile:
        """In our words."""
        if self.lfs is not None and _SHA256.fullmatch(self.lfs.sha256):
            return RemoteFile(self.rfilename, self.lfs.size or self.size or 0, self.lfs.sha256)
        return RemoteFile(self.rfilename, self.size or 0, git_sha1=self.blob_id or "")


class _Info(Struct, frozen=True, rename="camel"):
    sha: str
    siblings: list[_Sibling]
    id: str = ""
    private: bool = False
    gated: bool | str = False
    card_data: dict[str, Any] | None = None
    tags: list[str] = []


def _licence(info: _Info) -> str:
    """As the card says it; else as the tags do. "other" has a name of its own."""
    card = info.card_data or {}
    found = card.get("license")
    if isinstance(found, list):
        found = found[0] if found else ""
    if found == "other":
        found = card.get("license_name") or "other"
    if not found:
        tags = [tag.partition(":")[2] for tag in info.tags if tag.startswith("license:")]
        found = tags[0] if tags else ""
    text = "".join(c for c in str(found) if c.isprintable()).strip()
    return "" if text in ("unknown", "None") else text[:60]


def _completed(file: RemoteFile, told: Mapping[str, str]) -> RemoteFile:
    """With what the hub's headers add: of large files the hash is their ETag."""
    etag = told.get("x-linked-etag", "").removeprefix("W/").strip('"')
    size = told.get("x-linked-size", "")
    if not file.sha256 and _SHA256.fullmatch(etag):
        file = replace(file, sha256=etag)
    if not file.bytes and size.isascii() and size.isdigit():
        file = replace(file, bytes=int(size))
    return file


def _require_success(answer: httpx.Response, *, what: str, known: bool) -> None:
    """Raises what a refusal means to the buyer."""
    status, code = answer.status_code, answer.headers.get("X-Error-Code", "")
    if status in (200, 206):
        return
    if status == 416:
        raise Conflicted(f"the hub has less of {what} than was fetched of it")
    if code == "GatedRepo" or status == 403:
        raise Forbidden(
            f"the hub keeps {what} behind a gate: ask for access on its page there, and add it "
            "again with a token of an account that has it"
        )
    if code == "RevisionNotFound":
        raise Missing(f"the hub has no {what}: the repository has no such revision")
    if code == "EntryNotFound":
        raise Missing(f"the hub has no {what}")
    if status in (401, 404):
        raise Missing(
            f"the hub has no {what}"
            + (" that your token may read" if known else "; if it is private, add it with a token")
            + ": check the name"
        )
    raise Unavailable(f"the hub answers with HTTP {status} when asked for {what}")


class Conflicted(Unavailable):
    """What was fetched so far can't be the beginning of what the hub has."""


def _whole(answer: httpx.Response, most: int, what: str) -> bytes:
    found = bytearray()
    for chunk in _chunks(answer, what):
        found += chunk
        if len(found) > most:
            raise TooLarge(f"the hub tells more than {most >> 20} MiB about {what}")
    return bytes(found)


def _chunks(answer: httpx.Response, what: str) -> Iterator[bytes]:
    try:
        # As they come: what a larger piece had gathered would be lost when the hub breaks off.
        yield from answer.iter_bytes()
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        raise Unavailable(f"the hub broke off in {what} ({why})") from None
