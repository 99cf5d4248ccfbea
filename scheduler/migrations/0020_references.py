"""The references of leases, assignments and let GPUs are checked set by set, and guarded as foreign
keys would; and no index stays that another begins with, or that nothing looks into.

A foreign key looks up each row by itself and locks what it refers to: a round of 10,000 leases made
200,000 such checks, whose locks were two fifths of what it wrote to the log. In their place:

1. A statement that inserts rows looks up all that they refer to, and fails as a foreign key does
   (`foreign_key_violation`) if anything is missing. It sees what has been committed by then.
2. A statement that deletes (or truncates) what may be referred to waits until nobody is writing
   references (SHARE conflicts with the lock of every writer, who keeps it to the end of the
   transaction), lets nobody write any until it has ended, and fails if there are references. So of
   one who refers and one who deletes at the same time, the later sees what the earlier has done.
3. References, once written, and ids never change.

All of this holds where a statement sees what has been committed before it began: READ COMMITTED, as
the market runs. Under any other isolation both sides refuse.
"""

from collections.abc import Iterator

import django.db.models.deletion
from django.db import migrations, models

REFERENCES = {
    "scheduler_lease": {"job_id": "buyers_job", "round_id": "scheduler_round"},
    "scheduler_assignment": {
        "lease_id": "scheduler_lease",
        "node_id": "suppliers_node",
        "supplier_id": "marketplace_org",
        "offer_id": "suppliers_offer",
    },
    "scheduler_leasedgpu": {"lease_id": "scheduler_lease", "gpu_id": "suppliers_gpu"},
}

FUNCTIONS = """
CREATE FUNCTION scheduler_require_isolation() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'references are guarded under READ COMMITTED only'
            USING ERRCODE = 'feature_not_supported';
    END IF;
END $$;

-- Arguments: a column and the table that it refers to, and so on. One pass over the rows. The text is
-- planned each time: a plan made for one row would be kept for a hundred thousand.
CREATE FUNCTION scheduler_check_references() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    cases text := '';
    joins text := '';
    missing text;
BEGIN
    PERFORM scheduler_require_isolation();
    FOR at IN 0 .. TG_NARGS - 1 BY 2 LOOP
        cases := cases || format(
            ' WHEN w.%1$I IS NOT NULL AND p%3$s.id IS NULL'
            ' THEN format(''Key (%1$s)=(%%s) is not present in table "%2$s".'', w.%1$I)',
            TG_ARGV[at], TG_ARGV[at + 1], at
        );
        joins := joins || format(
            ' LEFT JOIN %2$I p%3$s ON p%3$s.id = w.%1$I', TG_ARGV[at], TG_ARGV[at + 1], at
        );
    END LOOP;
    EXECUTE 'SELECT min(CASE' || cases || ' END) FROM written w' || joins INTO missing;
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'insert on table "%" refers to what is not there', TG_TABLE_NAME
            USING ERRCODE = 'foreign_key_violation', TABLE = TG_TABLE_NAME, DETAIL = missing;
    END IF;
    RETURN NULL;
END $$;

-- Arguments: a table that refers to this one and its column, and so on.
CREATE FUNCTION scheduler_guard_referred() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    referring boolean;
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF NOT EXISTS (SELECT FROM gone) THEN
            RETURN NULL;
        END IF;
    END IF;
    PERFORM scheduler_require_isolation();
    FOR at IN 0 .. TG_NARGS - 1 BY 2 LOOP
        EXECUTE format('LOCK TABLE %I IN SHARE MODE', TG_ARGV[at]);
        EXECUTE format(
            CASE WHEN TG_OP = 'DELETE'
                THEN 'SELECT EXISTS (SELECT FROM %1$I c WHERE c.%2$I IN (SELECT id FROM gone))'
                ELSE 'SELECT EXISTS (SELECT FROM %1$I c WHERE c.%2$I IS NOT NULL)'
            END, TG_ARGV[at], TG_ARGV[at + 1]
        ) INTO referring;
        IF referring THEN
            RAISE EXCEPTION '% on table "%" is refused: "%" still refers to it',
                lower(TG_OP), TG_TABLE_NAME, TG_ARGV[at]
                USING ERRCODE = 'foreign_key_violation', TABLE = TG_ARGV[at];
        END IF;
    END LOOP;
    RETURN NULL;
END $$;

CREATE FUNCTION scheduler_keep_references() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'ids and references of "%" never change', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME;
END $$;
"""
NO_FUNCTIONS = """
DROP FUNCTION scheduler_keep_references();
DROP FUNCTION scheduler_guard_referred();
DROP FUNCTION scheduler_check_references();
DROP FUNCTION scheduler_require_isolation();
"""


def _triggers() -> Iterator[tuple[str, str, str]]:
    """(table, trigger's name, the rest of its definition)."""
    referred: dict[str, list[str]] = {}
    for table, columns in REFERENCES.items():
        pairs = [f"'{name}', '{to}'" for name, to in columns.items()]
        yield table, "scheduler_references", (
            f"AFTER INSERT ON {table} REFERENCING NEW TABLE AS written FOR EACH STATEMENT"
            f" EXECUTE FUNCTION scheduler_check_references({', '.join(pairs)})"
        )  # fmt: skip
        yield table, "scheduler_references_stay", _kept(table, list(columns))
        for name, to in columns.items():
            referred.setdefault(to, []).append(f"'{table}', '{name}'")
    for table, pairs in referred.items():
        guard = f"FOR EACH STATEMENT EXECUTE FUNCTION scheduler_guard_referred({', '.join(pairs)})"
        deleted = f"AFTER DELETE ON {table} REFERENCING OLD TABLE AS gone {guard}"
        yield table, "scheduler_referred", deleted
        yield table, "scheduler_referred_truncated", f"AFTER TRUNCATE ON {table} {guard}"
        yield table, "scheduler_id_stays", _kept(table, ["id"])


def _kept(table: str, columns: list[str]) -> str:
    moved = " OR ".join(f"OLD.{name} IS DISTINCT FROM NEW.{name}" for name in columns)
    return (
        f"BEFORE UPDATE OF {', '.join(columns)} ON {table} FOR EACH ROW WHEN ({moved})"
        " EXECUTE FUNCTION scheduler_keep_references()"
    )


TRIGGERS = "".join(f"CREATE TRIGGER {name} {rest};\n" for _, name, rest in _triggers())
NO_TRIGGERS = "".join(f"DROP TRIGGER {name} ON {table};\n" for table, name, _ in _triggers())


class Migration(migrations.Migration):
    dependencies = [
        ("buyers", "0014_quotes_shorter"),
        ("marketplace", "0002_bell"),
        ("scheduler", "0019_grown"),
        ("suppliers", "0005_registries"),
    ]

    operations = [
        migrations.AlterField(
            model_name="assignment",
            name="lease",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="assignments",
                to="scheduler.lease",
            ),
        ),
        migrations.AlterField(
            model_name="assignment",
            name="node",
            field=models.ForeignKey(
                db_constraint=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="assignments",
                to="suppliers.node",
            ),
        ),
        migrations.AlterField(
            model_name="assignment",
            name="offer",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="suppliers.offer",
            ),
        ),
        migrations.AlterField(
            model_name="assignment",
            name="supplier",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="marketplace.org",
            ),
        ),
        migrations.AlterField(
            model_name="clearingprice",
            name="round",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="prices",
                to="scheduler.round",
            ),
        ),
        migrations.AlterField(
            model_name="lease",
            name="job",
            field=models.ForeignKey(
                db_constraint=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="leases",
                to="buyers.job",
            ),
        ),
        migrations.AlterField(
            model_name="lease",
            name="round",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="leases",
                to="scheduler.round",
            ),
        ),
        migrations.AlterField(
            model_name="leasedgpu",
            name="gpu",
            field=models.ForeignKey(
                db_constraint=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="leases",
                to="suppliers.gpu",
            ),
        ),
        # Django would drop every index of this one column, `gpu_let_once` with them.
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.RunSQL(
                    "DROP INDEX scheduler_leasedgpu_gpu_id_e33d7243",
                    "CREATE INDEX scheduler_leasedgpu_gpu_id_e33d7243"
                    " ON scheduler_leasedgpu (gpu_id)",
                )
            ],
            state_operations=[
                migrations.AlterField(
                    model_name="leasedgpu",
                    name="gpu",
                    field=models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="leases",
                        to="suppliers.gpu",
                    ),
                )
            ],
        ),
        migrations.AlterField(
            model_name="leasedgpu",
            name="lease",
            field=models.ForeignKey(
                db_constraint=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="gpus",
                to="scheduler.lease",
            ),
        ),
        migrations.RunSQL(FUNCTIONS, NO_FUNCTIONS),
        migrations.RunSQL(TRIGGERS, NO_TRIGGERS),
    ]
