"""`python -m buyers.sdk`: the same as `gridloom`."""

from buyers.sdk.cli import app

app()
