"""An org's word that it may use a base: once per org, repository and licence, for ever on record."""

from datetime import datetime

from django.contrib.auth.models import User

from buyers.hub_models import LicenceAcceptance
from buyers.models import Artifact
from marketplace.core.errors import Conflict, Invalid
from marketplace.models import Org


def accept(org: Org, base: Artifact, *, licence: str, by: User, now: datetime) -> None:
    """Records that the org accepts the licence of a fetched base; again is a no-op.

    `licence` is what the person was shown. Raises Conflict if the base's is another one, Invalid
    for a base that is not from a hub.
    """
    if not base.source:
        raise Invalid(f"{base} is not from a hub: there is no licence to accept")
    if licence != base.licence:
        raise Conflict(
            f"the licence of {base} is {base.licence or 'not named'}, not {licence[:60]!r}: "
            "read it, and accept that one"
        )
    if not licence:
        raise Invalid(
            f"{base} names no licence: add it again, saying why your organisation may use it",
            field="right",
        )
    _record(org, base.repository, licence=licence, statement="", by=by.get_username(), now=now)


def state_right(org: Org, repository: str, statement: str, *, by: str, now: datetime) -> None:
    """Records why the org may use a repository that names no licence. In a transaction."""
    _record(org, repository, licence="", statement=statement, by=by, now=now)


def accepted(org: Org, base: Artifact) -> LicenceAcceptance | None:
    """The org's word on this base, if it has given it."""
    return LicenceAcceptance.objects.filter(
        org=org, repository=base.repository, licence=base.licence
    ).first()


def words(org: Org) -> set[tuple[str, str]]:
    """All (repository, licence) that the org has given its word on."""
    return set(LicenceAcceptance.objects.filter(org=org).values_list("repository", "licence"))


def require(org: Org, base: Artifact, *, field: str = "base") -> None:
    """Raises Invalid unless the org may use the base: published ones and own models need no word.

    `field` is what the job calls it.
    """
    if not base.source or accepted(org, base):
        return
    raise Invalid(
        f"your organisation has not accepted the licence of {base} ({base.licence or 'none named'})"
        f": look at it on the page Bases, or run `gridloom base accept {base.pk}`",
        field=field,
    )


def _record(
    org: Org, repository: str, *, licence: str, statement: str, by: str, now: datetime
) -> None:
    LicenceAcceptance.objects.get_or_create(
        org=org,
        repository=repository,
        licence=licence,
        defaults={"statement": statement, "by": by[:150], "at": now},
    )
