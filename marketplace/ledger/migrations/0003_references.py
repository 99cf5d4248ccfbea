"""A batch's accounts are looked up at once, not transfer by transfer with a lock on each: accounts are
neither deleted nor renumbered (0002), so all that a foreign key adds is that they exist."""

import django.db.models.deletion
from django.db import migrations, models

_APPLY = """
CREATE OR REPLACE FUNCTION ledger_apply() RETURNS trigger LANGUAGE plpgsql AS $$
{check}
    UPDATE ledger_account a SET balance = a.balance + d.change
    FROM (
        SELECT account, sum(change)::bigint AS change FROM (
            SELECT credit_id AS account, amount AS change FROM written
            UNION ALL SELECT debit_id, -amount FROM written
        ) m GROUP BY account
    ) d
    WHERE a.id = d.account AND d.change <> 0;
    RETURN NULL;
END $$;
"""
# Planned each time: a plan made for one transfer would be kept for ten thousand.
_CHECK = """
DECLARE
    missing bigint;
BEGIN
    EXECUTE 'SELECT count(*) FROM written w'
        ' LEFT JOIN ledger_account d ON d.id = w.debit_id'
        ' LEFT JOIN ledger_account c ON c.id = w.credit_id'
        ' WHERE d.id IS NULL OR c.id IS NULL' INTO missing;
    IF missing > 0 THEN
        RAISE EXCEPTION '% transfers are from or to an account that is not there', missing
            USING ERRCODE = 'foreign_key_violation', TABLE = 'ledger_transfer';
    END IF;
"""


def _end(name: str) -> migrations.AlterField:
    return migrations.AlterField(
        model_name="transfer",
        name=name,
        field=models.ForeignKey(
            db_constraint=False,
            db_index=False,
            on_delete=django.db.models.deletion.PROTECT,
            related_name=f"{name}s",
            to="ledger.account",
        ),
    )


class Migration(migrations.Migration):
    dependencies = [("ledger", "0002_guards")]
    operations = [
        _end("debit"),
        _end("credit"),
        migrations.RunSQL(_APPLY.format(check=_CHECK), _APPLY.format(check="BEGIN")),
    ]
