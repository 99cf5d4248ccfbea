"""`manage.py seed`: the accounts of a development site, the same each time it is run.

Passwords and keys are made from the site's own SECRET_KEY, so they can be printed again after a
restart and are worth nothing anywhere else.
"""

import base64
import hashlib
import hmac
import json
from argparse import ArgumentParser
from datetime import datetime

from allauth.account.models import EmailAddress
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management.base import BaseCommand
from django.db import transaction
from django.utils import timezone

from marketplace import accounts
from marketplace.models import ApiKey, Org, Scope, digest

PEOPLE = (
    ("admin", "", ()),
    ("supplier", "Northlight Lab", (Scope.SUPPLY, Scope.MONEY)),
    ("supplier2", "Harbour Racks", (Scope.SUPPLY, Scope.MONEY)),
    ("buyer", "Acme Models", (Scope.BUY, Scope.MONEY, Scope.ATTACH)),
)


class Command(BaseCommand):
    """Makes an admin, two suppliers and a buyer, each with a password and an API key."""

    help = "Make the accounts of a development site"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print the accounts as JSON")

    @transaction.atomic
    def handle(self, *args: object, **options: object) -> None:
        now = timezone.now()
        made = [_account(name, org, scopes, now) for name, org, scopes in PEOPLE]
        if options["json"]:
            self.stdout.write(json.dumps(made))
            return
        for account in made:
            self.stdout.write(f"{account['role']:10} {account['email']:28} {account['password']}")


def _account(name: str, org_name: str, scopes: tuple[str, ...], now: datetime) -> dict[str, str]:
    email, password = f"{name}@gridloom.example", _made("password", name)[:16]
    is_admin = not org_name
    user, _ = User.objects.get_or_create(
        username=email, defaults={"email": email, "is_staff": is_admin, "is_superuser": is_admin}
    )
    if not user.check_password(password):
        user.set_password(password)
        user.save(update_fields=["password"])
    EmailAddress.objects.get_or_create(
        user=user, email=email, defaults={"verified": True, "primary": True}
    )
    account = {"role": name, "email": email, "password": password, "org": "", "key": ""}
    if org_name:
        org = Org.objects.filter(name=org_name).first() or accounts.create_org(
            org_name, owner=user, now=now
        )
        secret = f"glk_{_made('key', name)}"
        ApiKey.objects.get_or_create(
            digest=digest(secret),
            defaults={
                "org": org, "name": "development", "start": secret[:8], "scopes": list(scopes),
                "created_by": user, "created_at": now,
            },
        )  # fmt: skip
        account |= {"org": org.name, "key": secret}
    return account


def _made(what: str, name: str) -> str:
    key = f"{settings.SECRET_KEY}/{what}".encode()
    return base64.urlsafe_b64encode(hmac.digest(key, name.encode(), hashlib.sha256)).decode()[:43]
