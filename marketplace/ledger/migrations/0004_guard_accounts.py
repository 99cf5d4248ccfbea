"""Who may move a balance is asked before the guard is called, not by it: a round opens and fills
10,000 escrows, for each of which a function was run twice to say yes."""

from django.db import migrations

# Inside of a transfer's trigger the depth is 1; anybody else is at 0.
GUARD = """
DROP TRIGGER ledger_guard_account ON ledger_account;
CREATE OR REPLACE FUNCTION ledger_guard_account() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        RAISE EXCEPTION 'an account starts at 0; post a transfer'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RAISE EXCEPTION 'an account changes only by a transfer; post one'
        USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER ledger_guard_opening BEFORE INSERT ON ledger_account
    FOR EACH ROW WHEN (NEW.balance IS DISTINCT FROM 0)
    EXECUTE FUNCTION ledger_guard_account();
CREATE TRIGGER ledger_guard_account BEFORE UPDATE ON ledger_account
    FOR EACH ROW WHEN (
        pg_trigger_depth() < 1
        OR (NEW.id, NEW.kind, NEW.owner) IS DISTINCT FROM (OLD.id, OLD.kind, OLD.owner)
    )
    EXECUTE FUNCTION ledger_guard_account();
"""
GUARD_BEFORE = """
DROP TRIGGER ledger_guard_account ON ledger_account;
DROP TRIGGER ledger_guard_opening ON ledger_account;
CREATE OR REPLACE FUNCTION ledger_guard_account() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.balance <> 0 THEN
            RAISE EXCEPTION 'an account starts at 0; post a transfer'
                USING ERRCODE = 'restrict_violation';
        END IF;
    ELSIF pg_trigger_depth() < 2
        OR (NEW.id, NEW.kind, NEW.owner) IS DISTINCT FROM (OLD.id, OLD.kind, OLD.owner) THEN
        RAISE EXCEPTION 'an account changes only by a transfer; post one'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER ledger_guard_account BEFORE INSERT OR UPDATE ON ledger_account
    FOR EACH ROW EXECUTE FUNCTION ledger_guard_account();
"""


class Migration(migrations.Migration):
    dependencies = [("ledger", "0003_references")]
    operations = [migrations.RunSQL(GUARD, GUARD_BEFORE)]
