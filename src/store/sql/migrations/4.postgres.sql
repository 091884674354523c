-- Lookups wait behind the lock of ALTER TABLE, so the wait for this lock is short.
SET LOCAL lock_timeout = '2s';

-- The token itself, sealed with a key that the database does not have. Null unless the service reveals tokens.
ALTER TABLE {p}tokens ADD COLUMN sealed TEXT;

-- A change of `sealed` changes no answer of a lookup, so caches need no notification.
DROP TRIGGER {p}token_changed ON {p}tokens;

CREATE TRIGGER {p}token_changed
AFTER INSERT OR DELETE OR UPDATE OF digest, grant_id, created_ms, rotated_until_ms ON {p}tokens
FOR EACH ROW EXECUTE FUNCTION {p}notify('tokens');

-- A token that was rotated or revoked is never revealed, so its sealed text is erased, whichever program changes the row.
CREATE FUNCTION {p}erase_rotated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.sealed := NULL;
    RETURN NEW;
END
$$;

CREATE TRIGGER {p}token_rotated BEFORE UPDATE OF rotated_until_ms ON {p}tokens
FOR EACH ROW WHEN (NEW.rotated_until_ms IS NOT NULL) EXECUTE FUNCTION {p}erase_rotated();

CREATE FUNCTION {p}erase_revoked() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- The search path of another program may not have the schema.
    EXECUTE format('UPDATE %I.{p}tokens SET sealed = NULL WHERE grant_id = $1 AND sealed IS NOT NULL', TG_TABLE_SCHEMA)
    USING NEW.id;
    RETURN NULL;
END
$$;

CREATE TRIGGER {p}grant_revoked AFTER UPDATE OF revoked_ms ON {p}grants
FOR EACH ROW WHEN (NEW.revoked_ms IS NOT NULL) EXECUTE FUNCTION {p}erase_revoked();
