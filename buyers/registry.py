"""A registry of container images over HTTP, as OCI's distribution specification has it: the only
module that knows its addresses.

`/v2/<repository>/manifests/<tag or digest>` tells an image's layers, or lists images by platform;
`/v2/<repository>/blobs/<digest>` has a layer's bytes, which nodes fetch, or what the image says of
itself. A registry that wants to know who asks is told nobody, and gives a token for what everybody
may read. Only the registries that the market's operator lists are asked, and where they themselves
send on to; whatever else a manifest tells to fetch from is not.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Self, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec
from django.conf import settings
from msgspec import Meta, Struct

from agent.protocol import MOST_LAYERS, File
from marketplace.core.errors import Invalid, Unavailable

MOST_REFERENCE: Final = 200
"""Characters of an image's name with its digest."""
_HUB: Final = "docker.io"
_WAITS: Final = httpx.Timeout(10, connect=5)
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
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_PLATFORM: Final = ("linux", "amd64")
_LAYER: Final = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.v1|docker\.image\.rootfs\.diff)\.tar"
    r"(?:[.+](?:gzip|zstd))?"
)
"""What registries give out themselves; others name places of their own."""
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_PROXY: Final = re.compile(r"(?i)\w*_proxy")
_MOST_ENV: Final = 16 * 1024
_FOR_NOBODY: Final = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
_MOST_HOPS: Final = 5


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
        named = cls(registry, repository, found[2] or "latest", found[3] or "")
        if len(named.at("sha256:") + 64 * "f") > MOST_REFERENCE:
            raise Invalid(f"an image's name has at most {MOST_REFERENCE} characters", field="image")
        return named

    def at(self, digest: str) -> str:
        """The name of what has this digest."""
        return f"{self.registry}/{self.repository}@{digest}"


@dataclass(frozen=True)
class Found:
    """An image for our machines, as its registry describes it."""

    layers: Sequence[File]
    env: dict[str, str]
    """What it sets for its programs."""


@dataclass(frozen=True)
class Places:
    """Where layers are to be fetched, and what to show for them, if anything."""

    urls: dict[str, str]
    """SHA-256 → URL."""
    authorization: str


def digest_now(reference: Reference) -> str:
    """The digest that a name means now. Raises as `look` does."""
    if reference.digest:
        return reference.digest
    with _asking() as http:
        return _Asked(http, reference).digest(reference.tag)


def look(reference: Reference, digest: str) -> Found:
    """What an image is made of. Raises Invalid if there is no such image for anybody, or none for
    our machines, and Unavailable if the registry gives no answer."""
    with _asking() as http:
        asked = _Asked(http, reference)
        manifest = asked.manifest(digest)
        if manifest.manifests:
            manifest = asked.manifest(asked.ours_of(manifest.manifests).digest)
        if manifest.config is None or not manifest.layers:
            raise Invalid(f"{asked.name} is no container image", field="image")
        config = asked.config(manifest.config)
    _require_fetchable(asked.name, manifest.layers)
    if (config.os, config.architecture) != _PLATFORM:
        raise Invalid(
            f"{asked.name} is for {config.os} on {config.architecture}, not for Linux on amd64",
            field="image",
        )
    layers = [
        File(path=f"{at:03}", bytes=layer.size, sha256=layer.digest.removeprefix("sha256:"))
        for at, layer in enumerate(manifest.layers)
    ]
    return Found(layers, _variables(asked.name, config.config.Env or ()))


def places(reference: Reference, layers: Sequence[str]) -> Places:
    """Where nodes fetch these layers (SHA-256). Raises as `look` does."""
    with _asking() as http:
        asked = _Asked(http, reference)
        asked.digest(reference.digest)
        urls = {sha256: asked.url("blobs", f"sha256:{sha256}") for sha256 in layers}
        return Places(urls, asked.authorization)


class _Platform(Struct, frozen=True):
    os: str
    architecture: str


class _Blob(Struct, frozen=True, rename={"kind": "mediaType"}):
    digest: Annotated[str, Meta(pattern=f"^{_DIGEST.pattern}$")]
    size: Annotated[int, Meta(ge=0, le=2**50)]
    kind: str = ""
    platform: _Platform | None = None


class _Manifest(Struct, frozen=True):
    """Of one image, or (`manifests`) a list of them by platform."""

    config: _Blob | None = None
    layers: list[_Blob] = []
    manifests: list[_Blob] = []


class _Token(Struct, frozen=True):
    token: str = ""
    access_token: str = ""


class _Run(Struct, frozen=True):
    Env: list[str] | None = None


class _Config(_Platform, frozen=True):
    """What an image says of itself."""

    config: _Run = _Run()


_Said = TypeVar("_Said", _Manifest, _Config)


class _Asked:
    """One registry, asked about one repository."""

    def __init__(self, http: httpx.Client, reference: Reference) -> None:
        self._http, self._reference = http, reference
        self._base = settings.IMAGE_REGISTRIES[reference.registry]
        self._token = ""
        self.name = f"{reference.registry}/{reference.repository}"

    @property
    def authorization(self) -> str:
        """What it has given to show; "" if it asks for nothing."""
        return f"Bearer {self._token}" if self._token else ""

    def url(self, kind: str, wanted: str) -> str:
        """Of a manifest or a blob."""
        return f"{self._base}/v2/{self._reference.repository}/{kind}/{wanted}"

    def digest(self, wanted: str) -> str:
        """Of a tag, or a digest itself, once the registry has it. HEAD is what registries count
        for nothing."""
        answer = self._ask("HEAD", "manifests", wanted)
        said = str(answer.headers.get("Docker-Content-Digest", ""))
        if _DIGEST.fullmatch(said):
            return said
        return _digest_of(self._ask("GET", "manifests", wanted).content)

    def manifest(self, digest: str) -> _Manifest:
        """What has this digest, held against it."""
        return self._read("manifests", digest, _Manifest)

    def config(self, blob: _Blob) -> _Config:
        """What an image says of itself, held against its digest."""
        return self._read("blobs", blob.digest, _Config)

    def _read(self, kind: str, digest: str, into: type[_Said]) -> _Said:
        body = self._ask("GET", kind, digest).content
        if _digest_of(body) != digest:
            raise Unavailable(f"{self._reference.registry} sends another image than {digest[:19]}…")
        try:
            return msgspec.json.decode(body, type=into)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Unavailable(f"what is said of {self.name} makes no sense: {error}") from None

    def _ask(self, method: str, kind: str, wanted: str) -> httpx.Response:
        """The answer, with a token if one is wanted; raises Invalid, Unavailable."""
        url, headers = self.url(kind, wanted), {"Accept": _KINDS}
        answer = self._get(url, headers, method)
        if answer.status_code == httpx.codes.UNAUTHORIZED and not self._token:
            self._token = self._ask_for_token(answer.headers.get("WWW-Authenticate", ""))
            answer = self._get(url, headers, method)
        self._require_success(answer, wanted)
        return answer

    def ours_of(self, listed: list[_Blob]) -> _Blob:
        """The image for our machines, of a list by platform; raises Invalid."""
        for one in listed:
            if one.platform and (one.platform.os, one.platform.architecture) == _PLATFORM:
                return one
        raise Invalid(f"{self.name} has no image for Linux on amd64", field="image")

    def _ask_for_token(self, challenge: str) -> str:
        """As nobody; "" where nothing is given so. Raises Unavailable."""
        told = dict(_CHALLENGE.findall(challenge))
        realm = told.pop("realm", "")
        told.setdefault("scope", f"repository:{self._reference.repository}:pull")
        try:
            if urlsplit(realm).scheme != urlsplit(self._base).scheme:
                return ""
            answer = self._get(str(httpx.URL(realm, params=told)), {})
        except (httpx.InvalidURL, ValueError):
            return ""
        if answer.status_code in _FOR_NOBODY:
            return ""
        if answer.status_code != httpx.codes.OK:
            raise Unavailable(
                f"{self._reference.registry} gives no token (HTTP {answer.status_code}); try again"
            )
        try:
            found = msgspec.json.decode(answer.content, type=_Token)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ""
        token = found.token or found.access_token
        return token if token.isascii() and token.isprintable() else ""

    def _get(self, url: str, headers: dict[str, str], method: str = "GET") -> httpx.Response:
        """The answer of a URL, or of where it leads; httpx shows the token to no other host."""
        own = {"Authorization": self.authorization} if self._token else {}
        request = self._http.build_request(method, url, headers=headers | own)
        try:
            for _ in range(_MOST_HOPS):
                answer = self._http.send(request, stream=True)
                if answer.next_request is None:
                    return self._read_all(answer)
                answer.close()
                request = answer.next_request
                if request.url.scheme != urlsplit(self._base).scheme:
                    raise Unavailable(f"{self._reference.registry} sends on to {request.url.host}")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = str(error) or type(error).__name__
            raise Unavailable(f"{self._reference.registry} does not answer ({why})") from None
        raise Unavailable(f"{self._reference.registry} sends on without end")

    def _read_all(self, answer: httpx.Response) -> httpx.Response:
        body = bytearray()
        try:
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > _MOST:
                    raise Invalid(f"{self.name} has too large a manifest", field="image")
        finally:
            answer.close()
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


def _asking() -> httpx.Client:
    return httpx.Client(timeout=_WAITS, headers={"User-Agent": "gridloom"})


def _digest_of(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def _require_fetchable(name: str, layers: Sequence[_Blob]) -> None:
    """Raises Invalid unless nodes may fetch them all from the registry, and hold them."""
    if strange := [layer.kind for layer in layers if not _LAYER.fullmatch(layer.kind)]:
        raise Invalid(
            f"{name} has layers of the kind {strange[0][:100]!r}, which can't be fetched from its "
            "registry",
            field="image",
        )
    size, most = sum(layer.size for layer in layers), settings.POLICY.image_bytes
    if size > most or len(layers) > MOST_LAYERS:
        raise Invalid(
            f"{name} has {len(layers)} layers of {size >> 20} MiB to fetch; the most are "
            f"{MOST_LAYERS} of {most >> 20} MiB",
            field="image",
        )


def _variables(name: str, env: Sequence[str]) -> dict[str, str]:
    """What an image sets for its programs, but for their way out, which is the sandbox's."""
    pairs = (line.partition("=")[::2] for line in env if "\0" not in line)
    found = {key: value for key, value in pairs if _NAME.fullmatch(key)}
    found = {key: value for key, value in found.items() if not _PROXY.fullmatch(key)}
    if len(msgspec.json.encode(found)) > _MOST_ENV:
        raise Invalid(
            f"{name} sets more than {_MOST_ENV >> 10} KiB of environment variables", field="image"
        )
    return found
