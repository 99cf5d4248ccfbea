"""`manage.py makebucket`: the one bucket the market keeps its bytes in, if it isn't there yet."""

from django.core.management.base import BaseCommand

from marketplace import storage


class Command(BaseCommand):
    help = "Make the object store's bucket, if it isn't there yet"

    def handle(self, *args: object, **options: object) -> None:
        storage.ensure_bucket()
