"""A hold goes with its job's waiting: released by the database itself, however the job moves on."""

from django.db import migrations

TRIGGER = """
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
NO_TRIGGER = """
DROP TRIGGER scheduler_job_waits_no_more ON buyers_job;
DROP FUNCTION scheduler_release_hold();
"""


class Migration(migrations.Migration):
    dependencies = [("buyers", "0013_service"), ("scheduler", "0017_holds")]
    operations = [migrations.RunSQL(TRIGGER, NO_TRIGGER)]
