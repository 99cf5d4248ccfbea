"""Which of an org's models of one name is the current one: what others build on by that name."""

from datetime import datetime

from django.contrib.auth.models import User
from django.db import transaction

from buyers import evaluations
from buyers.models import Artifact
from marketplace import locks
from marketplace.core.errors import Conflict, Invalid


def promote(artifact: Artifact, *, reason: str, by: User, now: datetime) -> Artifact:
    """Makes a model the current one of its name in its org; the one before is kept.

    One that got worse in a domain by more than its margin is promoted only with a reason, which
    its story keeps. Raises Invalid for what no job here made, Conflict for a drop without reason.
    """
    if artifact.org is None or artifact.job_id is None:
        raise Invalid(f"{artifact} is a base; only what a job of yours made can be promoted")
    found, reason = evaluations.of(artifact), " ".join(reason.split())
    dropped = found.dropped if found else []
    if dropped and not reason:
        raise Conflict(
            f"{artifact} got worse by more than its margin in: {', '.join(dropped)}. To promote it "
            "all the same, say why"
        )
    with transaction.atomic():
        locks.hold(f"models {artifact.org.pk}")
        for other in Artifact.objects.of(artifact.org).filter(name=artifact.name, state="current"):
            if other.pk == artifact.pk:
                raise Conflict(f"{artifact} is the current one already")
            other.advance("retire", now=now, by=by.get_username(), reason=f"for {artifact.pk}")
        artifact.refresh_from_db()
        return artifact.advance(
            "promote", now=now, by=by.get_username(), reason=_told(dropped, reason, found is None)
        )


def _told(dropped: list[str], reason: str, unmeasured: bool) -> str:
    if dropped:
        return f"although {', '.join(dropped)} dropped: {reason}"
    return reason or ("nothing was measured" if unmeasured else "nothing dropped")
