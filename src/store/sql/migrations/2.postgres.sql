-- Lookups wait behind the lock of ALTER TABLE, so the wait for this lock is short. ALTER TABLE comes first, because it needs the
-- strongest lock: an upgrade of a lock could end in a deadlock.
SET LOCAL lock_timeout = '2s';

-- The time of suspension. Null if the grant is not suspended.
ALTER TABLE {p}grants ADD COLUMN suspended_ms BIGINT;

-- The order of lists.
CREATE INDEX {p}grants_by_creation ON {p}grants (created_ms, id);

DROP TRIGGER {p}grant_changed ON {p}grants;

CREATE TRIGGER {p}grant_changed
AFTER UPDATE OF id, subject, label, scopes, quota_interval_ns, quota_burst, not_before_ms, expires_ms, sender_constrained,
    principal, created_ms, revoked_ms, suspended_ms ON {p}grants
FOR EACH ROW EXECUTE FUNCTION {p}notify('grants');

CREATE OR REPLACE FUNCTION {p}notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('{p}changes_' || (SELECT relnamespace FROM pg_class WHERE oid = TG_RELID), CASE
        WHEN TG_OP = 'INSERT' OR TG_ARGV[0] = 'resumed' THEN 'added'
        WHEN TG_OP = 'TRUNCATE' THEN 'everything'
        WHEN TG_ARGV[0] = 'grants' THEN 'grant ' || (to_jsonb(OLD) ->> 'id')
        ELSE 'grant ' || (to_jsonb(OLD) ->> 'grant_id')
    END);
    RETURN NULL;
END
$$;

-- Tokens of resumed grants were unknown, so caches may have negative entries for them.
CREATE TRIGGER {p}grant_resumed AFTER UPDATE OF revoked_ms, suspended_ms ON {p}grants
FOR EACH ROW WHEN ((OLD.revoked_ms IS NOT NULL AND NEW.revoked_ms IS NULL)
    OR (OLD.suspended_ms IS NOT NULL AND NEW.suspended_ms IS NULL))
EXECUTE FUNCTION {p}notify('resumed');
