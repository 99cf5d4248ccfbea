"""What buyers install: a client for Python, and the command line `gridloom`.

    from buyers.sdk import Client

    market = Client("https://market.example", key="glk_…")
    data = market.upload("my-data", name="support-answers")
    quote = market.quote(recipe="lora", base="SmolLM2-135M-Instruct", dataset=data.id, budget="5")
    job = market.take(quote)
    for update in market.watch(job):
        print(update.job.words, update.job.spent_micros)
    market.download(job, "my-model")

Imports nothing else of ours, and no Django.
"""

from buyers.sdk.client import Client
from buyers.sdk.errors import GridloomError, MarketRefused, Unreachable
from buyers.sdk.results import Job, Option, Quote, Receipt, Update, Wallet

__all__ = [
    "Client",
    "GridloomError",
    "Job",
    "MarketRefused",
    "Option",
    "Quote",
    "Receipt",
    "Unreachable",
    "Update",
    "Wallet",
]
