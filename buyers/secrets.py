"""Tokens that a buyer's jobs need elsewhere: kept sealed, never shown again, given to few.

A secret says how well a site must be vouched for to see it. Root of a machine reads everything
that runs there, so the default is `verified`: a job with a secret is placed nowhere less trusted,
and a node whose site has lost that trust meanwhile is given nothing.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from django.contrib.auth.models import User

from buyers.own_models import Secret
from marketplace import vault
from marketplace.core.errors import Conflict, Forbidden, Invalid, Missing
from marketplace.core.hardware import Trust
from marketplace.core.ids import uuid7
from marketplace.models import Org

_NAME: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
# Variables that the sandbox sets, or by which a program loads code or finds its way out.
_RESERVED: Final = re.compile(
    r"PATH|HOME|USER|LANG|TMPDIR|SHELL|IFS|ENV|BASH_ENV|LD_.*|PYTHON.*|GRIDLOOM_.*|CUDA_.*"
    r"|NVIDIA_.*|.*_PROXY|LC_.*|GLIBC_.*|MALLOC_.*"
)
_LEAST, _MOST = 8, 8192
"""Characters: less could not be told from other output when it is masked there."""
MOST: Final = 50


def keep(
    org: Org, *, name: str, value: str, by: User, now: datetime, trust: int = Trust.VERIFIED
) -> Secret:
    """A new secret, or a new value of one. Raises Invalid, naming the field; Conflict for too
    many."""
    _check(name, value)
    sealed = vault.seal(value)
    known = Secret.objects.of(org).filter(name=name)
    if not known.exists() and Secret.objects.of(org).count() >= MOST:
        raise Conflict(f"an organisation keeps at most {MOST} secrets; forget one first")
    secret, _ = Secret.objects.update_or_create(
        org=org,
        name=name,
        defaults={"sealed": sealed, "trust": trust, "set_by": by.get_username(), "set_at": now},
        create_defaults={
            "id": uuid7(), "sealed": sealed, "trust": trust, "set_by": by.get_username(),
            "set_at": now,
        },
    )  # fmt: skip
    return secret


def forget(secret: Secret) -> None:
    """Jobs that ask for it, and have not started, will not start."""
    secret.delete()


def worst_site(org: Org, names: Sequence[str]) -> int:
    """The trust of the worst site that may see all of them; raises Invalid for one that the org
    doesn't have."""
    found = {secret.name: secret for secret in Secret.objects.of(org).filter(name__in=names)}
    for name in names:
        if name not in found:
            raise Invalid(
                f"you have no secret {name[:64]!r}; set it first, with "
                f"`gridloom secret set NAME` or on the page of your secrets",
                field="secrets",
            )
    return min((found[name].trust for name in names), default=Trust.COMMUNITY)


def worst_site_now(org: Org, names: Sequence[str]) -> int:
    """The same for a job that waits: its owner may have tightened one since, or forgotten it."""
    trusts = Secret.objects.of(org).filter(name__in=names).values_list("trust", flat=True)
    return min(trusts, default=Trust.COMMUNITY)


def are_kept(org: Org, names: Sequence[str]) -> bool:
    """Whether none of them has been forgotten."""
    return Secret.objects.of(org).filter(name__in=names).count() == len(set(names))


def open_for(org: Org, names: Sequence[str], *, site_trust: int, now: datetime) -> dict[str, str]:
    """Name → value for a job on a site of this trust; that it was read is noted.

    Raises Missing for a secret that was forgotten meanwhile, Forbidden for one that the site may
    not see.
    """
    found = {secret.name: secret for secret in Secret.objects.of(org).filter(name__in=names)}
    for name in names:
        if name not in found:
            raise Missing(f"the secret {name} was forgotten by its owner")
        if site_trust > found[name].trust:
            least = Trust(found[name].trust).name.lower()
            raise Forbidden(f"the secret {name} is only for sites that are at least {least}")
    Secret.objects.filter(pk__in=[secret.pk for secret in found.values()]).update(used_at=now)
    return {name: vault.unseal(bytes(found[name].sealed)) for name in names}


def parse_trust(text: str) -> Trust:
    """By its name; raises Invalid."""
    for level in Trust:
        if text == level.name.lower():
            return level
    names = ", ".join(level.name.lower() for level in Trust)
    raise Invalid(f"trust is one of {names}, not {text[:30]!r}", field="trust")


def _check(name: str, value: str) -> None:
    if not _NAME.fullmatch(name):
        raise Invalid(
            "a secret's name is the variable that the job finds it in: capital letters, digits "
            f"and underscores, like HF_TOKEN, not {name[:64]!r}",
            field="name",
        )
    if _RESERVED.fullmatch(name):
        raise Invalid(f"{name} is a variable of the sandbox's own; choose another", field="name")
    if not _LEAST <= len(value) <= _MOST:
        raise Invalid(
            f"a secret has {_LEAST} to {_MOST} characters, this one {len(value)}", field="value"
        )
    if "\0" in value:
        raise Invalid("a secret can't hold a NUL character", field="value")
