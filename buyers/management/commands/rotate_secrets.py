"""`manage.py rotate_secrets`: seals every secret anew with the first of VAULT_KEYS."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from buyers.own_models import Secret
from marketplace import vault
from marketplace.core.errors import MarketError


class Command(BaseCommand):
    """After this the older keys may go. Again is harmless."""

    help = "Seal all secrets anew with the first of VAULT_KEYS"

    def handle(self, *args: Any, **options: Any) -> None:
        count = 0
        for secret in Secret.objects.order_by("pk").iterator():
            sealed = bytes(secret.sealed)
            try:
                anew = vault.reseal(sealed)
            except MarketError as error:
                raise CommandError(f"{secret.org}'s {secret.name}: {error}") from None
            # Unless its owner sets another value meanwhile.
            count += Secret.objects.filter(pk=secret.pk, sealed=sealed).update(sealed=anew)
        self.stdout.write(f"{count} secrets are sealed with the first key.")
