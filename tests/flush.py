"""How the suite empties a database whose ledger refuses to be emptied."""

from django.db.backends.postgresql.operations import DatabaseOperations

_GUARDED = ("ledger_transfer", "ledger_account")


def past_the_guards() -> None:
    """Lets the flush after a test with `transaction=True` truncate the ledger's tables.

    The owner of the tables switches the guards off and on again, in the flush's own transaction;
    no code of the product ever does.
    """
    flush = DatabaseOperations.sql_flush

    def sql_flush(self: DatabaseOperations, *args: object, **options: object) -> list[str]:
        from scheduler.following import OFFERS  # its models want Django, which is being set up

        OFFERS.forget()  # no trigger tells of a TRUNCATE
        statements: list[str] = flush(self, *args, **options)  # type: ignore[arg-type]
        opened = [
            sql
            for table in _GUARDED
            for sql in (
                f"ALTER TABLE {table} DISABLE TRIGGER USER",
                f"GRANT TRUNCATE ON {table} TO CURRENT_USER",
            )
        ]
        closed = [
            sql
            for table in _GUARDED
            for sql in (
                f"ALTER TABLE {table} ENABLE TRIGGER USER",
                f"REVOKE TRUNCATE ON {table} FROM CURRENT_USER",
            )
        ]
        return [*opened, *statements, *closed] if statements else []

    DatabaseOperations.sql_flush = sql_flush  # type: ignore[method-assign]
