"""`manage.py rotate_secrets`: seals all that is kept sealed anew with the first of VAULT_KEYS."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Model, QuerySet

from buyers.hub_models import Fetch
from buyers.own_models import Secret
from marketplace import vault
from marketplace.core.errors import MarketError


class Command(BaseCommand):
    """After this the older keys may go. Again is harmless."""

    help = "Seal all secrets anew with the first of VAULT_KEYS"

    def handle(self, *args: Any, **options: Any) -> None:
        count = _reseal(Secret.objects.all(), "sealed")
        count += _reseal(Fetch.objects.exclude(token=None), "token")
        self.stdout.write(f"{count} secrets are sealed with the first key.")


def _reseal(rows: QuerySet[Any], column: str) -> int:
    """How many were sealed anew; raises CommandError naming the first that no key opens."""
    count = 0
    row: Model
    for row in rows.order_by("pk").iterator():
        sealed = bytes(getattr(row, column))
        try:
            anew = vault.reseal(sealed)
        except MarketError as error:
            raise CommandError(f"{row}: {error}") from None
        # Unless it was set or forgotten meanwhile.
        count += rows.filter(pk=row.pk, **{column: sealed}).update(**{column: anew})
    return count
