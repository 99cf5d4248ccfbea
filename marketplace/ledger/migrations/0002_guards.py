"""What no Python can promise: history stays as written, and balances follow from it alone."""

from django.db import migrations

GUARDS = """
-- 1. Balances follow the transfers, in the same statement that inserts them.
CREATE FUNCTION ledger_apply() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
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
CREATE TRIGGER ledger_apply AFTER INSERT ON ledger_transfer
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION ledger_apply();

-- 2. And nothing else moves them: an UPDATE is let through only from inside the trigger above.
CREATE FUNCTION ledger_guard_account() RETURNS trigger LANGUAGE plpgsql AS $$
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

-- 3. History is neither changed nor removed.
CREATE FUNCTION ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: the ledger only grows; post a transfer that corrects',
        TG_OP, TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER ledger_keep_transfers BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_transfer
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse();
CREATE TRIGGER ledger_keep_accounts BEFORE DELETE OR TRUNCATE ON ledger_account
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse();

-- 4. The privileges say so too (a superuser ignores them, the triggers it meets).
REVOKE UPDATE, DELETE, TRUNCATE ON ledger_transfer FROM PUBLIC, CURRENT_USER;
REVOKE DELETE, TRUNCATE ON ledger_account FROM PUBLIC, CURRENT_USER;
"""

UNGUARDED = """
GRANT UPDATE, DELETE, TRUNCATE ON ledger_transfer TO CURRENT_USER;
GRANT DELETE, TRUNCATE ON ledger_account TO CURRENT_USER;
DROP TRIGGER ledger_keep_accounts ON ledger_account;
DROP TRIGGER ledger_keep_transfers ON ledger_transfer;
DROP FUNCTION ledger_refuse();
DROP TRIGGER ledger_guard_account ON ledger_account;
DROP FUNCTION ledger_guard_account();
DROP TRIGGER ledger_apply ON ledger_transfer;
DROP FUNCTION ledger_apply();
"""


class Migration(migrations.Migration):
    dependencies = [("ledger", "0001_initial")]
    operations = [migrations.RunSQL(GUARDS, UNGUARDED)]
