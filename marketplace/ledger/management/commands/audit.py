"""`manage.py audit`: whether the books balance; exits 1 if they don't."""

from django.core.management.base import BaseCommand, CommandError

from marketplace.core.money import format_amount
from marketplace.ledger import services as ledger


class Command(BaseCommand):
    """Sums all balances (0, always) and compares each account with its transfers."""

    help = "Check that the ledger balances"

    def handle(self, *args: object, **options: object) -> None:
        off, total = ledger.audit(), ledger.imbalance()
        for ref, difference in off.items():
            self.stderr.write(f"{ref} is off by {format_amount(difference)}")
        if off or total:
            raise CommandError(f"the ledger does not balance: its sum is {total} micros")
        self.stdout.write("0")
