-- The token itself, sealed with a key that the database does not have. Null unless the service reveals tokens.
ALTER TABLE {p}tokens ADD COLUMN sealed TEXT;

-- A change of `sealed` changes no answer of a lookup, so caches need no notification.
DROP TRIGGER {p}token_changed;

CREATE TRIGGER {p}token_changed AFTER UPDATE OF digest, grant_id, created_ms, rotated_until_ms ON {p}tokens
BEGIN INSERT INTO {p}changes (grant_id) VALUES (OLD.grant_id); END;

DROP TRIGGER {p}token_replaced_by_update;

CREATE TRIGGER {p}token_replaced_by_update BEFORE UPDATE OF digest, grant_id, rotated_until_ms ON {p}tokens
BEGIN
    INSERT INTO {p}changes (grant_id) SELECT grant_id FROM {p}tokens
    WHERE digest = NEW.digest
        OR (NEW.rotated_until_ms IS NULL AND grant_id = NEW.grant_id AND rotated_until_ms IS NULL);
END;

-- A token that was rotated or revoked is never revealed, so its sealed text is erased, whichever program changes the row.
CREATE TRIGGER {p}token_rotated AFTER UPDATE OF rotated_until_ms ON {p}tokens
WHEN NEW.rotated_until_ms IS NOT NULL AND NEW.sealed IS NOT NULL
BEGIN UPDATE {p}tokens SET sealed = NULL WHERE digest = NEW.digest; END;

CREATE TRIGGER {p}grant_revoked AFTER UPDATE OF revoked_ms ON {p}grants WHEN NEW.revoked_ms IS NOT NULL
BEGIN UPDATE {p}tokens SET sealed = NULL WHERE grant_id = NEW.id AND sealed IS NOT NULL; END;
