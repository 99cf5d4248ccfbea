"""Which node moved in which transaction, written down by the database itself, whoever writes; and
what stands open, as the market page shows it."""

from django.db import migrations, models

# A heartbeat names none of these columns, and so costs nothing here.
NODE_COLUMNS = (
    "site_id, state, lost_at, owner_busy, boot_id, session, lan_address, environment, disk_bytes,"
    " nvlink, egress, builds, python, torch, registries, inventory"
)
TRIGGERS = f"""
CREATE FUNCTION scheduler_note_moved() RETURNS trigger LANGUAGE plpgsql AS $$
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
CREATE TRIGGER scheduler_offer_moved AFTER INSERT OR UPDATE ON suppliers_offer
    FOR EACH ROW EXECUTE FUNCTION scheduler_note_moved('node_id');
CREATE TRIGGER scheduler_gpu_moved AFTER INSERT OR UPDATE ON suppliers_gpu
    FOR EACH ROW EXECUTE FUNCTION scheduler_note_moved('node_id');
CREATE TRIGGER scheduler_node_moved AFTER UPDATE OF {NODE_COLUMNS} ON suppliers_node
    FOR EACH ROW EXECUTE FUNCTION scheduler_note_moved('id');
CREATE TRIGGER scheduler_site_moved AFTER UPDATE ON suppliers_site
    FOR EACH ROW EXECUTE FUNCTION scheduler_note_moved('site');
CREATE TRIGGER scheduler_gpus_let AFTER INSERT ON scheduler_leasedgpu
    REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION scheduler_note_moved('gpus');
CREATE TRIGGER scheduler_gpus_released AFTER UPDATE ON scheduler_leasedgpu
    REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION scheduler_note_moved('gpus');
"""
NO_TRIGGERS = """
DROP TRIGGER scheduler_gpus_released ON scheduler_leasedgpu;
DROP TRIGGER scheduler_gpus_let ON scheduler_leasedgpu;
DROP TRIGGER scheduler_site_moved ON suppliers_site;
DROP TRIGGER scheduler_node_moved ON suppliers_node;
DROP TRIGGER scheduler_gpu_moved ON suppliers_gpu;
DROP TRIGGER scheduler_offer_moved ON suppliers_offer;
DROP FUNCTION scheduler_note_moved();
"""


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0015_records"), ("suppliers", "0005_registries")]
    operations = [
        migrations.CreateModel(
            name="Moved",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("node", models.UUIDField()),
                (
                    "xid",
                    models.BigIntegerField(
                        help_text="Number of the transaction, as pg_current_xact_id says"
                    ),
                ),
                ("at", models.DateTimeField()),
            ],
            options={
                "indexes": [
                    models.Index(fields=["xid", "node"], name="moved_since"),
                    models.Index(fields=["at"], name="moved_at"),
                ],
            },
        ),
        migrations.CreateModel(
            name="OpenSupply",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("at", models.DateTimeField()),
                ("classes", models.JSONField(help_text="As scheduler.public writes it")),
            ],
        ),
        migrations.RunSQL(TRIGGERS, NO_TRIGGERS),
    ]
