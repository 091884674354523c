-- The time of suspension. Null if the grant is not suspended.
ALTER TABLE {p}grants ADD COLUMN suspended_ms BIGINT;

-- The order of lists.
CREATE INDEX {p}grants_by_creation ON {p}grants (created_ms, id);

DROP TRIGGER {p}grant_changed;

CREATE TRIGGER {p}grant_changed
AFTER UPDATE OF id, subject, label, scopes, quota_interval_ns, quota_burst, not_before_ms, expires_ms, sender_constrained,
    principal, created_ms, revoked_ms, suspended_ms ON {p}grants
BEGIN INSERT INTO {p}changes (grant_id) VALUES (OLD.id); END;

-- Tokens of resumed grants were unknown, so caches may have negative entries for them.
CREATE TRIGGER {p}grant_resumed AFTER UPDATE OF revoked_ms, suspended_ms ON {p}grants
WHEN (OLD.revoked_ms IS NOT NULL AND NEW.revoked_ms IS NULL)
    OR (OLD.suspended_ms IS NOT NULL AND NEW.suspended_ms IS NULL)
BEGIN INSERT INTO {p}changes (grant_id) VALUES (NULL); END;
