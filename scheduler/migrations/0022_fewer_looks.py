"""What a round's rows refer to is looked up with fewer joins, and a lease stands in one index less.

1. Let GPUs were gone through twice: for what they refer to, and for the nodes that move by them. One
   pass finds both.
2. An assignment's node is that of its offer, which has a foreign key to it: so it is looked for there,
   and not in the nodes' own table, whose rows are long.
3. Once for each job and round begins with the job: whoever asks for a job's leases finds them there.
4. Specs of large gangs are laid aside as they are. To compress them took longer than to write them,
   and a meter that runs wrote what was left of them anew each time.
"""

import django.db.models.deletion
from django.db import migrations, models

_REFERENCES = "AFTER INSERT ON {table} REFERENCING NEW TABLE AS written FOR EACH STATEMENT"
LET = f"""
DROP TRIGGER scheduler_gpus_let ON scheduler_leasedgpu;
DROP TRIGGER scheduler_references ON scheduler_leasedgpu;
CREATE FUNCTION scheduler_check_let() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    missing text;
    moved uuid[];
BEGIN
    PERFORM scheduler_require_isolation();
    -- Planned each time: a plan made for one row would be kept for fifty thousand.
    EXECUTE 'SELECT min(missing), array_agg(node_id) FROM ('
        '   SELECT g.node_id, min(CASE'
        '       WHEN l.id IS NULL THEN format('
        '           ''Key (lease_id)=(%s) is not present in table "scheduler_lease".'', w.lease_id)'
        '       WHEN g.id IS NULL THEN format('
        '           ''Key (gpu_id)=(%s) is not present in table "suppliers_gpu".'', w.gpu_id)'
        '   END) AS missing'
        '   FROM written w LEFT JOIN scheduler_lease l ON l.id = w.lease_id'
        '   LEFT JOIN suppliers_gpu g ON g.id = w.gpu_id GROUP BY g.node_id'
        ' ) m' INTO missing, moved;
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'insert on table "%" refers to what is not there', TG_TABLE_NAME
            USING ERRCODE = 'foreign_key_violation', TABLE = TG_TABLE_NAME, DETAIL = missing;
    END IF;
    IF moved IS NOT NULL THEN
        INSERT INTO scheduler_moved (nodes, xid, at)
        VALUES (moved, pg_current_xact_id()::text::bigint, now());
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER scheduler_gpus_let {_REFERENCES.format(table="scheduler_leasedgpu")}
    EXECUTE FUNCTION scheduler_check_let();
"""
LET_BEFORE = f"""
DROP TRIGGER scheduler_gpus_let ON scheduler_leasedgpu;
DROP FUNCTION scheduler_check_let();
CREATE TRIGGER scheduler_references {_REFERENCES.format(table="scheduler_leasedgpu")}
    EXECUTE FUNCTION scheduler_check_references(
        'lease_id', 'scheduler_lease', 'gpu_id', 'suppliers_gpu'
    );
CREATE TRIGGER scheduler_gpus_let {_REFERENCES.format(table="scheduler_leasedgpu")}
    EXECUTE FUNCTION scheduler_note_moved('gpus');
"""
ASSIGNED = f"""
DROP TRIGGER scheduler_references ON scheduler_assignment;
CREATE FUNCTION scheduler_check_assigned() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    missing text;
BEGIN
    PERFORM scheduler_require_isolation();
    EXECUTE 'SELECT min(CASE'
        '   WHEN l.id IS NULL THEN format('
        '       ''Key (lease_id)=(%s) is not present in table "scheduler_lease".'', w.lease_id)'
        '   WHEN s.id IS NULL THEN format('
        '       ''Key (supplier_id)=(%s) is not present in table "marketplace_org".'', w.supplier_id)'
        '   WHEN o.id IS NULL THEN format('
        '       ''Key (offer_id)=(%s) is not present in table "suppliers_offer".'', w.offer_id)'
        '   WHEN o.node_id <> w.node_id THEN format('
        '       ''Key (node_id)=(%s) is not the node of the offer.'', w.node_id)'
        ' END) FROM written w LEFT JOIN scheduler_lease l ON l.id = w.lease_id'
        ' LEFT JOIN marketplace_org s ON s.id = w.supplier_id'
        ' LEFT JOIN suppliers_offer o ON o.id = w.offer_id' INTO missing;
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'insert on table "%" refers to what is not there', TG_TABLE_NAME
            USING ERRCODE = 'foreign_key_violation', TABLE = TG_TABLE_NAME, DETAIL = missing;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER scheduler_references {_REFERENCES.format(table="scheduler_assignment")}
    EXECUTE FUNCTION scheduler_check_assigned();
"""
ASSIGNED_BEFORE = f"""
DROP TRIGGER scheduler_references ON scheduler_assignment;
DROP FUNCTION scheduler_check_assigned();
CREATE TRIGGER scheduler_references {_REFERENCES.format(table="scheduler_assignment")}
    EXECUTE FUNCTION scheduler_check_references(
        'lease_id', 'scheduler_lease', 'node_id', 'suppliers_node',
        'supplier_id', 'marketplace_org', 'offer_id', 'suppliers_offer'
    );
"""
PLAIN = "ALTER TABLE scheduler_assignment ALTER COLUMN spec SET STORAGE {}"


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0021_moved_by_statement")]

    operations = [
        migrations.RunSQL(LET, LET_BEFORE),
        migrations.RunSQL(ASSIGNED, ASSIGNED_BEFORE),
        migrations.RunSQL(PLAIN.format("EXTERNAL"), PLAIN.format("EXTENDED")),
        migrations.RemoveConstraint("lease", "matched_once_per_round"),
        migrations.AddConstraint(
            "lease",
            models.UniqueConstraint(fields=["job", "round"], name="matched_once_per_round"),
        ),
        # Django would drop every index of this one column, `one_live_lease_per_job` with them.
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.RunSQL(
                    "DROP INDEX scheduler_lease_job_id_e3ae8da0",
                    "CREATE INDEX scheduler_lease_job_id_e3ae8da0 ON scheduler_lease (job_id)",
                )
            ],
            state_operations=[
                migrations.AlterField(
                    model_name="lease",
                    name="job",
                    field=models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="leases",
                        to="buyers.job",
                    ),
                )
            ],
        ),
    ]
