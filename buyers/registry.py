"""A registry of container images over HTTP, as OCI's distribution specification has it: the only
module that knows its addresses.

`/v2/<repository>/manifests/<tag or digest>` tells an image's layers, or lists images by platform;
a registry that wants to know who asks is told nobody, and gives a token for what everybody may
read. Only the registries that the market's operator lists are asked.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

import httpx
import msgspec
from django.conf import settings
from msgspec import Struct

from marketplace.core.errors import Invalid, Unavailable

_HUB: Final = "docker.io"
_WAITS: Final = httpx.Timeout(20, connect=10)
_MOST: Final = 4 * 2**20
"""Bytes of a manifest: the specification's own bound."""
_KINDS: Final = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        *("oci.image.index.v1", "oci.image.manifest.v1"),
        *("docker.distribution.manifest.list.v2", "docker.distribution.manifest.v2"),
    )
)
_PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE: Final = re.compile(
    rf"({_PART}(?:/{_PART})*)(?::([A-Za-z0-9_][\w.-]{{0,127}}))?(?:@(sha256:[0-9a-f]{{64}}))?",
    re.ASCII,
)
_CHALLENGE: Final = re.compile(r'(realm|service|scope)="([^"]*)"')
_PLATFORM: Final = ("linux", "amd64")


@dataclass(frozen=True)
class Reference:
    """An image's name: by its digest, which never changes, or by a tag, which may."""

    registry: str
    repository: str
    tag: str
    digest: str
    """sha256:…; empty if it is named by its tag alone."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """As Docker reads it; raises Invalid."""
        first, _, rest = text.partition("/")
        has_host = rest and ("." in first or ":" in first or first == "localhost")
        registry, name = (first, rest) if has_host else (_HUB, text)
        found = _REFERENCE.fullmatch(name)
        if found is None:
            raise Invalid(
                f"an image is named like ghcr.io/organisation/name:tag or …@sha256:…, not "
                f"{text[:120]!r}",
                field="image",
            )
        if registry not in settings.IMAGE_REGISTRIES:
            known = ", ".join(settings.IMAGE_REGISTRIES)
            raise Invalid(f"no images are taken from {registry}, but from {known}", field="image")
        official = registry == _HUB and "/" not in found[1]
        repository = f"library/{found[1]}" if official else found[1]
        return cls(registry, repository, found[2] or "latest", found[3] or "")

    def at(self, digest: str) -> str:
        """The name of what has this digest."""
        return f"{self.registry}/{self.repository}@{digest}"


@dataclass(frozen=True)
class Found:
    """An image as its registry describes it: `digest` of what was named, `bytes` to fetch."""

    digest: str
    bytes: int


def look(reference: Reference) -> Found:
    """What a name means now. Raises Invalid if there is no such image for anybody, or none for our
    machines, and Unavailable if the registry gives no answer."""
    with httpx.Client(timeout=_WAITS, headers={"User-Agent": "gridloom"}) as http:
        asked = _Asked(http, reference)
        digest, manifest = asked.manifest(reference.digest or reference.tag)
        if manifest.manifests:
            _, manifest = asked.manifest(asked.ours_of(manifest.manifests).digest)
    if manifest.config is None or not manifest.layers:
        raise Invalid(f"{asked.name} is no container image", field="image")
    return Found(digest, manifest.config.size + sum(layer.size for layer in manifest.layers))


class _Platform(Struct, frozen=True):
    os: str
    architecture: str


class _Blob(Struct, frozen=True):
    digest: str
    size: int
    platform: _Platform | None = None


class _Manifest(Struct, frozen=True):
    """Of one image, or (`manifests`) a list of them by platform."""

    config: _Blob | None = None
    layers: list[_Blob] = []
    manifests: list[_Blob] = []


class _Asked:
    """One registry, asked about one repository."""

    def __init__(self, http: httpx.Client, reference: Reference) -> None:
        self._http, self._reference = http, reference
        self._base = settings.IMAGE_REGISTRIES[reference.registry]
        self._token = ""
        self.name = f"{reference.registry}/{reference.repository}"

    def manifest(self, wanted: str) -> tuple[str, _Manifest]:
        """(digest, manifest) of a tag or a digest, held against the latter."""
        url = f"{self._base}/v2/{self._reference.repository}/manifests/{wanted}"
        answer = self._get(url, {"Accept": _KINDS})
        if answer.status_code == httpx.codes.UNAUTHORIZED and not self._token:
            self._token = self._ask_for_token(answer.headers.get("WWW-Authenticate", ""))
            answer = self._get(url, {"Accept": _KINDS})
        self._require_success(answer, wanted)
        digest = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
        if wanted.startswith("sha256:") and digest != wanted:
            raise Unavailable(f"{self._reference.registry} sends another image than {wanted[:19]}…")
        try:
            return digest, msgspec.json.decode(answer.content, type=_Manifest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unavailable(f"what is said of {self.name} makes no sense: {error}") from None

    def ours_of(self, listed: list[_Blob]) -> _Blob:
        """The image for our machines, of a list by platform; raises Invalid."""
        for one in listed:
            if one.platform and (one.platform.os, one.platform.architecture) == _PLATFORM:
                return one
        raise Invalid(f"{self.name} has no image for Linux on amd64", field="image")

    def _ask_for_token(self, challenge: str) -> str:
        """As nobody; "" where nothing is given so."""
        told = dict(_CHALLENGE.findall(challenge))
        realm = told.pop("realm", "")
        if urlsplit(realm).scheme != urlsplit(self._base).scheme:
            return ""
        told.setdefault("scope", f"repository:{self._reference.repository}:pull")
        answer = self._get(str(httpx.URL(realm, params=told)), {})
        try:
            found = msgspec.json.decode(answer.content, type=dict[str, str | int | None])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ""
        return str(found.get("token") or found.get("access_token") or "")

    def _get(self, url: str, headers: dict[str, str]) -> httpx.Response:
        own = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            with self._http.stream("GET", url, headers=headers | own) as answer:
                body = bytearray()
                for chunk in answer.iter_bytes():
                    body += chunk
                    if len(body) > _MOST:
                        raise Invalid(f"{self.name} has too large a manifest", field="image")
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise Unavailable(f"{self._reference.registry} does not answer ({why})") from None
        return httpx.Response(
            answer.status_code, headers=_plain(answer.headers), content=bytes(body)
        )

    def _require_success(self, answer: httpx.Response, wanted: str) -> None:
        status = answer.status_code
        if status == httpx.codes.OK:
            return
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND):
            raise Invalid(
                f"{self.name} has no image {wanted[:80]} that everybody may fetch: check its name, "
                "or make it public",
                field="image",
            )
        raise Unavailable(f"{self._reference.registry} answers with HTTP {status}; try again")


def _plain(headers: httpx.Headers) -> dict[str, str]:
    """Without what says how the body was packed: it is unpacked by now."""
    return {name: value for name, value in headers.items() if name != "content-encoding"}
