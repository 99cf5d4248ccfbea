"""Container images that jobs run in: their names become digests before anybody pays.

`resolved` goes to the registry, so it is called at the edge, before any transaction. What a digest
was found to be is kept for all orgs: it never changes, and everybody may fetch it.
"""

from dataclasses import replace
from datetime import datetime
from typing import Final

import msgspec
from django.db.models import QuerySet

from buyers import registry
from buyers.own_models import ContainerImage
from buyers.registry import Places, Reference
from marketplace.core.errors import Conflict, Invalid
from marketplace.core.ids import uuid7
from marketplace.core.specs import NO_PACKAGES, JobRequest

_SCRIPT: Final = "script"


def resolved(request: JobRequest, *, now: datetime) -> JobRequest:
    """The request with its image named by digest. Raises Invalid, and Unavailable if the registry
    is away."""
    if not request.image:
        return request
    _require_alone(request)
    named = Reference.parse(request.image)
    digest = registry.digest_now(named)
    known = _looked_at().filter(reference=named.at(digest)).first()
    if known is None:
        found = registry.look(named, digest)
        facts = {
            "registry": named.registry,
            "bytes": sum(layer.bytes for layer in found.layers),
            "layers": msgspec.to_builtins(found.layers),
            "env": found.env,
        }
        known, _ = ContainerImage.objects.update_or_create(
            reference=named.at(digest),
            defaults=facts,
            create_defaults={**facts, "id": uuid7(), "created_at": now},
        )
    return replace(request, image=known.reference, packages=NO_PACKAGES)


def of_request(request: JobRequest) -> ContainerImage | None:
    """The image that a resolved request names; None if it runs on the node's own system.

    Raises Invalid for one that nobody has looked at.
    """
    if not request.image:
        return None
    _require_alone(request)
    found = _looked_at().filter(reference=request.image).first()
    if found is None:
        raise Invalid("its image has not been looked at; ask for a quote first", field="image")
    return found


def places(image: ContainerImage) -> Places:
    """Where a node fetches its layers. Raises Unavailable if the registry is away, and Conflict if
    it gives the image to nobody any more."""
    layers = [layer["sha256"] for layer in image.layers]
    try:
        return registry.places(Reference.parse(image.reference), layers)
    except Invalid as gone:
        raise Conflict(f"its image can't be fetched any more: {gone}") from None


def _looked_at() -> QuerySet[ContainerImage]:
    """Layers were not asked for at first."""
    return ContainerImage.objects.exclude(layers=[])


def _require_alone(request: JobRequest) -> None:
    if request.recipe != _SCRIPT:
        raise Invalid(
            f"the recipe {request.recipe} runs in the node's own environment; an image is for "
            "script",
            field="image",
        )
    if request.environment or request.packages not in ("", NO_PACKAGES):
        raise Invalid(
            "an image brings all that its job sees: leave out environment and packages",
            field="image",
        )
