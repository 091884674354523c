-- Lookups wait behind the lock of ALTER TABLE, so the wait for this lock is short.
SET LOCAL lock_timeout = '2s';

-- The token itself, sealed with a key that the database does not have. Null unless the service reveals tokens, and if the token
-- was rotated or revoked.
ALTER TABLE {p}tokens ADD COLUMN sealed TEXT;

-- A change of `sealed` changes no answer of a lookup, so caches need no notification.
DROP TRIGGER {p}token_changed ON {p}tokens;

CREATE TRIGGER {p}token_changed
AFTER INSERT OR DELETE OR UPDATE OF digest, grant_id, created_ms, rotated_until_ms ON {p}tokens
FOR EACH ROW EXECUTE FUNCTION {p}notify('tokens');
