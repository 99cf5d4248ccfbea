"""What buyers install: a client for programs, and `gridloom` for people.

from buyers.sdk import Client
client = Client("https://market.example", "glk_…")
quote = client.quote(recipe="lora", base="SmolLM2-135M-Instruct", dataset="pairs", budget="2")
job = client.take(quote, quote.best.index)
for update in client.watch(job):
    print(update.job.words)
client.download(job, "model")
"""

from buyers.sdk.client import Client
from buyers.sdk.errors import Damaged, GridloomError, MarketRefused, Unreachable

__all__ = ["Client", "Damaged", "GridloomError", "MarketRefused", "Unreachable"]
