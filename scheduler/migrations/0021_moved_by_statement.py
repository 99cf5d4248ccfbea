"""What a statement moves is one row, not one for each node: a round that lets GPUs of 17,000 nodes
wrote as many, each into three indexes. Holds are released statement by statement too, and what a
lease's spec tells of its machine is among what the book minds."""

import django.contrib.postgres.fields
from django.db import migrations, models

# As in 0016, and what a lease's spec tells of the machine. A heartbeat names none of these columns.
NODE_COLUMNS = (
    "site_id, state, lost_at, owner_busy, boot_id, session, lan_address, environment, disk_bytes,"
    " nvlink, egress, builds, python, torch, registries, inventory"
)
NODE_COLUMNS_NOW = f"{NODE_COLUMNS}, name, memory_bytes, bandwidth_mbps"


def node_trigger(columns: str) -> str:
    """Which of a node's columns the book minds."""
    return f"""
        DROP TRIGGER scheduler_node_moved ON suppliers_node;
        CREATE TRIGGER scheduler_node_moved AFTER UPDATE OF {columns} ON suppliers_node
            FOR EACH ROW EXECUTE FUNCTION scheduler_note_moved('id');
    """


COLUMN = """
DROP INDEX moved_since;
ALTER TABLE scheduler_moved ALTER COLUMN node TYPE uuid[] USING ARRAY[node];
ALTER TABLE scheduler_moved RENAME COLUMN node TO nodes;
CREATE INDEX moved_since ON scheduler_moved (xid);
"""
NO_COLUMN = """
DROP INDEX moved_since;
ALTER TABLE scheduler_moved RENAME COLUMN nodes TO node;
ALTER TABLE scheduler_moved ADD COLUMN nodes uuid[];
UPDATE scheduler_moved SET nodes = node;
ALTER TABLE scheduler_moved DROP COLUMN node;
ALTER TABLE scheduler_moved ADD COLUMN node uuid;
INSERT INTO scheduler_moved (node, xid, at) SELECT unnest(nodes), xid, at FROM scheduler_moved;
DELETE FROM scheduler_moved WHERE node IS NULL;
ALTER TABLE scheduler_moved DROP COLUMN nodes;
ALTER TABLE scheduler_moved ALTER COLUMN node SET NOT NULL;
CREATE INDEX moved_since ON scheduler_moved (xid, node);
"""
NOTE = """
CREATE OR REPLACE FUNCTION scheduler_note_moved() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    moved uuid[];
BEGIN
    -- The argument says what the new rows lead to a node by.
    IF TG_ARGV[0] = 'node_id' THEN
        moved := ARRAY[NEW.node_id];
    ELSIF TG_ARGV[0] = 'id' THEN
        moved := ARRAY[NEW.id];
    ELSIF TG_ARGV[0] = 'site' THEN
        SELECT array_agg(n.id) INTO moved FROM suppliers_node n WHERE n.site_id = NEW.id;
    ELSE
        -- Planned each time: a plan made for one row would be kept for fifty thousand.
        EXECUTE 'SELECT array_agg(node_id) FROM ('
            '   SELECT DISTINCT g.node_id FROM written w JOIN suppliers_gpu g ON g.id = w.gpu_id'
            ' ) m' INTO moved;
    END IF;
    IF moved IS NOT NULL THEN
        INSERT INTO scheduler_moved (nodes, xid, at)
        VALUES (moved, pg_current_xact_id()::text::bigint, now());
    END IF;
    RETURN NULL;
END $$;
"""
NOTE_BEFORE = """
CREATE OR REPLACE FUNCTION scheduler_note_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- The argument says what the new rows lead to a node by.
    IF TG_ARGV[0] = 'node_id' THEN
        INSERT INTO scheduler_moved (node, xid, at)
        VALUES (NEW.node_id, pg_current_xact_id()::text::bigint, now());
    ELSIF TG_ARGV[0] = 'id' THEN
        INSERT INTO scheduler_moved (node, xid, at)
        VALUES (NEW.id, pg_current_xact_id()::text::bigint, now());
    ELSIF TG_ARGV[0] = 'site' THEN
        INSERT INTO scheduler_moved (node, xid, at)
        SELECT n.id, pg_current_xact_id()::text::bigint, now()
        FROM suppliers_node n WHERE n.site_id = NEW.id;
    ELSE
        INSERT INTO scheduler_moved (node, xid, at)
        SELECT DISTINCT g.node_id, pg_current_xact_id()::text::bigint, now()
        FROM written w JOIN suppliers_gpu g ON g.id = w.gpu_id;
    END IF;
    RETURN NULL;
END $$;
"""
HOLDS = """
DROP TRIGGER scheduler_job_waits_no_more ON buyers_job;
DROP FUNCTION scheduler_release_hold();
CREATE FUNCTION scheduler_release_holds() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    over bigint[];
BEGIN
    -- There are few, and mostly none.
    IF EXISTS (SELECT FROM scheduler_hold) THEN
        over := ARRAY(
            SELECT h.id FROM scheduler_hold h
            JOIN waited o ON o.id = h.job_id JOIN written w ON w.id = h.job_id
            WHERE o.state = 'queued' AND w.state <> 'queued'
        );
        DELETE FROM scheduler_heldgpu WHERE hold_id = ANY(over);
        DELETE FROM scheduler_hold WHERE id = ANY(over);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER scheduler_jobs_wait_no_more AFTER UPDATE ON buyers_job
    REFERENCING OLD TABLE AS waited NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION scheduler_release_holds();
"""
HOLDS_BEFORE = """
DROP TRIGGER scheduler_jobs_wait_no_more ON buyers_job;
DROP FUNCTION scheduler_release_holds();
CREATE FUNCTION scheduler_release_hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Of the thousands that a round places, hardly any has one.
    PERFORM FROM scheduler_hold WHERE job_id = OLD.id;
    IF FOUND THEN
        DELETE FROM scheduler_heldgpu
        WHERE hold_id IN (SELECT id FROM scheduler_hold WHERE job_id = OLD.id);
        DELETE FROM scheduler_hold WHERE job_id = OLD.id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER scheduler_job_waits_no_more AFTER UPDATE OF state ON buyers_job
    FOR EACH ROW WHEN (OLD.state = 'queued' AND NEW.state <> 'queued')
    EXECUTE FUNCTION scheduler_release_hold();
"""


class Migration(migrations.Migration):
    dependencies = [("buyers", "0015_job_indexes"), ("scheduler", "0020_references")]
    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunSQL(COLUMN, NO_COLUMN)],
            state_operations=[
                migrations.RemoveIndex("moved", "moved_since"),
                migrations.RenameField("moved", "node", "nodes"),
                migrations.AlterField(
                    "moved",
                    "nodes",
                    django.contrib.postgres.fields.ArrayField(models.UUIDField()),
                ),
                migrations.AddIndex("moved", models.Index(fields=["xid"], name="moved_since")),
            ],
        ),
        migrations.RunSQL(NOTE, NOTE_BEFORE),
        migrations.RunSQL(node_trigger(NODE_COLUMNS_NOW), node_trigger(NODE_COLUMNS)),
        migrations.RunSQL(HOLDS, HOLDS_BEFORE),
    ]
