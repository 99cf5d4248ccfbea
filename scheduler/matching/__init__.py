"""The matching engine: one order book in, one set of matches with prices and a proof out.

Pure: numpy and the standard library, no Django, no clock, no randomness but the book's own seed.
`book.build` → `clear.clear` → `check.check`; `quote.quote` prices one order against a book,
`explain.waiting` and `idling.idle` say why who got nothing did not.
`python -m scheduler.matching` does the same with files.
"""
