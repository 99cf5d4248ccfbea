"""`manage.py prepare`: all that a development site needs before its processes start, in one go.

The tables, the bucket, and the accounts of `manage.py seed`, printed as its JSON.
"""

from django.core.management import call_command
from django.core.management.base import BaseCommand

from marketplace import storage


class Command(BaseCommand):
    """Migrates, makes the bucket, seeds; run again, it changes nothing."""

    help = "Migrate, make the bucket, and make the accounts of a development site"

    def handle(self, *args: object, **options: object) -> None:
        call_command("migrate", interactive=False, stdout=self.stderr)
        storage.ensure_bucket()
        call_command("seed", "--json", stdout=self.stdout)
