"""What an org has to spend, read from the ledger."""

from dataclasses import dataclass

from django.conf import settings

from buyers.models import Job
from marketplace.ledger import services as ledger
from marketplace.models import Org


@dataclass(frozen=True)
class Wallet:
    """Amounts in micros. What is held for jobs comes back if they don't use it."""

    currency: str
    balance_micros: int
    held_micros: int


def look(org: Org) -> Wallet:
    """The org's wallet, and the escrows of its live jobs. Two queries."""
    own = ledger.wallet(org.pk)
    live = Job.objects.of(org).live().values_list("pk", flat=True)
    balances = ledger.balances([own, *(ledger.escrow(job) for job in live)])
    balance = balances.pop(own)
    return Wallet(settings.CURRENCY, balance, sum(balances.values()))
