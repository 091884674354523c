-- Numbered changes for polling: the id of the changed grant, or null for a new token. The last 1000 changes are kept. A process
-- that does not find the last change it read has missed some changes.
CREATE TABLE {p}changes (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    grant_id TEXT
);

CREATE TRIGGER {p}changes_kept AFTER INSERT ON {p}changes
BEGIN DELETE FROM {p}changes WHERE id <= NEW.id - 1000; END;

INSERT INTO {p}changes (grant_id) VALUES (NULL);

CREATE TRIGGER {p}grant_changed
AFTER UPDATE OF id, subject, label, scopes, quota_interval_ns, quota_burst, not_before_ms, expires_ms, sender_constrained,
    principal, created_ms, revoked_ms ON {p}grants
BEGIN INSERT INTO {p}changes (grant_id) VALUES (OLD.id); END;

CREATE TRIGGER {p}grant_deleted AFTER DELETE ON {p}grants
BEGIN INSERT INTO {p}changes (grant_id) VALUES (OLD.id); END;

CREATE TRIGGER {p}token_added AFTER INSERT ON {p}tokens
BEGIN INSERT INTO {p}changes (grant_id) VALUES (NULL); END;

CREATE TRIGGER {p}token_changed AFTER UPDATE ON {p}tokens
BEGIN INSERT INTO {p}changes (grant_id) VALUES (OLD.grant_id); END;

CREATE TRIGGER {p}token_deleted AFTER DELETE ON {p}tokens
BEGIN INSERT INTO {p}changes (grant_id) VALUES (OLD.grant_id); END;

-- `REPLACE` and `OR REPLACE` delete rows without firing `DELETE` triggers. The following triggers record such changes.
CREATE TRIGGER {p}grant_replaced BEFORE INSERT ON {p}grants
BEGIN INSERT INTO {p}changes (grant_id) SELECT id FROM {p}grants WHERE id = NEW.id; END;

CREATE TRIGGER {p}token_replaced BEFORE INSERT ON {p}tokens
BEGIN
    INSERT INTO {p}changes (grant_id) SELECT grant_id FROM {p}tokens
    WHERE digest = NEW.digest
        OR (NEW.rotated_until_ms IS NULL AND grant_id = NEW.grant_id AND rotated_until_ms IS NULL);
END;

CREATE TRIGGER {p}grant_replaced_by_update BEFORE UPDATE OF id ON {p}grants
BEGIN INSERT INTO {p}changes (grant_id) SELECT id FROM {p}grants WHERE id = NEW.id; END;

CREATE TRIGGER {p}token_replaced_by_update BEFORE UPDATE ON {p}tokens
BEGIN
    INSERT INTO {p}changes (grant_id) SELECT grant_id FROM {p}tokens
    WHERE digest = NEW.digest
        OR (NEW.rotated_until_ms IS NULL AND grant_id = NEW.grant_id AND rotated_until_ms IS NULL);
END;
