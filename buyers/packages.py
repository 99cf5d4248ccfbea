"""A project's own packages: resolved into a lock before anybody pays for anything.

`resolved` goes to the index, so it is called at the edge, before any transaction; what it finds is
kept as a `PackageLock` and named by its hash in the request, so that the quote, the job and the
nodes all mean the same files.

torch is tried first at the version that most nodes have: then it, and what belongs to its build,
is left out of the lock and linked in from the node (`agent.packages`), which spares gigabytes and
fits the node's driver. A project that insists on another torch gets the whole of it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from typing import Final

from django.conf import settings

from agent.recipes import catalog
from buyers import references, requirements, resolver
from buyers.models import Dataset
from buyers.own_models import PackageLock
from buyers.requirements import Asked
from buyers.resolver import Wheel
from marketplace import storage
from marketplace.core.errors import Invalid
from marketplace.core.ids import uuid7
from marketplace.core.specs import NO_PACKAGES, JobRequest
from marketplace.models import Org
from suppliers.models import Node

_PYTHON: Final = "3.11"
_SCRIPT: Final = "script"
"""The recipe that is the user's own program; ours need the node's environment."""


def resolved(org: Org, request: JobRequest, *, now: datetime) -> JobRequest:
    """The request with its lock named, resolved now if the project asks for packages.

    Raises Invalid, naming the line or uv's reason, and Unavailable if the index is away.
    """
    if request.packages or not request.script or not _reads_script(request.recipe):
        return request
    if request.environment:
        return replace(request, packages=NO_PACKAGES)
    script = references.dataset(org, request.script, field="script")
    names = requirements.chosen(_paths(script))
    python, torch = _usual()
    asked = requirements.read(_files(script, names), python=python) if names else None
    if asked is None:
        return replace(request, packages=NO_PACKAGES)
    if request.recipe != _SCRIPT:
        raise Invalid(
            f"the recipe {request.recipe} runs in the node's own environment, and {script} asks for "
            f"packages in {names[0]}: leave that file out, or say packages none",
            field="script",
        )
    lock = _lock(org, asked, python, torch, now)
    return replace(request, packages=lock.sha256)


def of_request(org: Org, request: JobRequest, script: Dataset | None) -> PackageLock | None:
    """The lock that a resolved request names; None if it runs in the node's own environment.

    Raises Invalid for a lock that the org has not resolved, and for a project whose packages
    nobody has looked at.
    """
    if request.packages == NO_PACKAGES or (script is None and not request.packages):
        return None
    if not request.packages:
        if not requirements.chosen(_paths(script)):
            return None
        raise Invalid("its packages have not been resolved; ask for a quote first", field="script")
    if script is None or request.recipe != _SCRIPT:
        raise Invalid("only the recipe script has packages of its own", field="packages")
    lock = PackageLock.objects.of(org).filter(sha256=request.packages).first()
    if lock is None:
        raise Invalid(
            f"you have resolved no packages into the lock {request.packages[:64]}; leave it out, "
            "and they are resolved from the project's files",
            field="packages",
        )
    return lock


def _reads_script(recipe: str) -> bool:
    return recipe in catalog.names() and any(
        entry.name == "script" for entry in catalog.inputs(recipe)
    )


def _paths(script: Dataset | None) -> set[str]:
    return {entry["path"] for entry in script.manifest} if script else set()


def _files(script: Dataset, names: Sequence[str]) -> dict[str, bytes]:
    found = {}
    for entry in script.manifest:
        if entry["path"] in names:
            if entry["bytes"] > requirements.MOST_BYTES:
                raise Invalid(
                    f"{entry['path']} has {entry['bytes']:,} bytes, and may have "
                    f"{requirements.MOST_BYTES:,}",
                    field="script",
                )
            key = storage.file_key(script.prefix, entry["sha256"])
            found[entry["path"]] = b"".join(storage.read(key))
    return found


def _usual() -> tuple[str, str]:
    """The Python and the torch that most nodes have."""
    nodes = Node.objects.exclude(state="retired").exclude(python="")
    counted = Counter(nodes.values_list("python", "torch"))
    return max(counted, key=lambda one: (counted[one], one), default=(_PYTHON, ""))


def _lock(org: Org, asked: Asked, python: str, torch: str, now: datetime) -> PackageLock:
    wheels = _wheels(asked, python, torch)
    with_torch = next((one.version for one in wheels if one.name == "torch"), "")
    lent = torch if with_torch and with_torch.partition("+")[0] == torch else ""
    if lent:
        named = asked.names - {"torch"}
        wheels = [
            one for one in wheels if one.name in named or not requirements.is_of_torch(one.name)
        ]
    _require_hashes(asked, wheels)
    text = _text(wheels, python, lent)
    digest = sha256(text.encode()).hexdigest()
    lock, _ = PackageLock.objects.get_or_create(
        org=org,
        sha256=digest,
        defaults={
            "id": uuid7(),
            "text": text,
            "python": python,
            "torch": lent,
            "count": len(wheels),
            "bytes": sum(one.bytes for one in wheels) if all(one.bytes for one in wheels) else 0,
            "hosts": _hosts(wheels),
            "created_at": now,
        },
    )
    return lock


def _wheels(asked: Asked, python: str, torch: str) -> list[Wheel]:
    def attempt(*more: str) -> list[Wheel]:
        return resolver.resolve(
            asked.requirements,
            [*asked.constraints, *more],
            python=python,
            index=settings.PACKAGE_INDEX_URL,
            within_s=settings.POLICY.resolve_s,
        )

    if torch:
        try:
            return attempt(f"torch=={torch}")
        except Invalid:
            pass  # it wants another torch, or can't be had at all: the next attempt says which
    return attempt()


def _hosts(wheels: Sequence[Wheel]) -> list[str]:
    index = resolver.host_of(settings.PACKAGE_INDEX_URL)
    return sorted({index, *(one.host for one in wheels)})


def _require_hashes(asked: Asked, wheels: Sequence[Wheel]) -> None:
    for one in wheels:
        allowed = asked.hashes.get(one.name)
        if allowed and one.sha256 not in allowed:
            raise Invalid(
                f"the index's wheel of {one.name} {one.version} is not among those that the "
                "project's own lock allows: its SHA-256 differs",
                field="script",
            )


def _text(wheels: Sequence[Wheel], python: str, lent: str) -> str:
    head = f"# For Python {python} on Linux, x86-64.\n"
    if lent:
        head += f"# torch {lent} is the node's own.\n"
    return head + "".join(
        f"{one.name}=={one.version} --hash=sha256:{one.sha256}\n" for one in wheels
    )
