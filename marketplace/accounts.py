"""Orgs, members and API keys: made, joined and revoked."""

from collections.abc import Sequence
from datetime import datetime

from django.contrib.auth.models import User
from django.utils.text import slugify

from marketplace.core.errors import Invalid
from marketplace.core.ids import uuid7
from marketplace.models import ApiKey, Member, Org, Scope, new_secret


def create_org(name: str, *, owner: User, now: datetime) -> Org:
    """An org with `owner` as its first member. Call it in a transaction."""
    name = " ".join(name.split())
    if not name:
        raise Invalid("an organisation needs a name", field="organisation")
    pk = uuid7()
    slug = slugify(name)[:40] or "org"
    if Org.objects.filter(slug=slug).exists():
        slug = f"{slug}-{pk.hex[-8:]}"
    org = Org.objects.create(id=pk, name=name, slug=slug, created_at=now)
    Member.objects.create(org=org, user=owner, role=Member.Role.OWNER, joined_at=now)
    return org


def create_key(
    org: Org, *, name: str, scopes: Sequence[str], by: User, now: datetime
) -> tuple[ApiKey, str]:
    """A key and its secret, which is shown once and kept nowhere.

    Raises Invalid without a name or with a scope that there is none of.
    """
    if not name.strip():
        raise Invalid("a key needs a name, so that you can tell it from others", field="name")
    unknown = set(scopes) - set(Scope.values)
    if unknown or not scopes:
        raise Invalid(f"a key's scopes are of {', '.join(Scope.values)}", field="scopes")
    secret, kept = new_secret("k")
    key = ApiKey.objects.create(
        org=org,
        name=name.strip()[:60],
        start=secret[:8],
        digest=kept,
        scopes=sorted(set(scopes)),
        created_by=by,
        created_at=now,
    )
    return key, secret
