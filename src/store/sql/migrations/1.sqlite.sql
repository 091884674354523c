-- What was changed is counted, for who polls. `added` are tokens; `changed` is everything that a look-up may have told.
CREATE TABLE {p}changes (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    added BIGINT NOT NULL,
    changed BIGINT NOT NULL
);

INSERT INTO {p}changes (id, added, changed) VALUES (1, 0, 0);

CREATE TRIGGER {p}grant_changed
AFTER UPDATE OF id, subject, label, scopes, quota_interval_ns, quota_burst, not_before_ms, expires_ms, sender_constrained,
    principal, created_ms, revoked_ms ON {p}grants
BEGIN UPDATE {p}changes SET changed = changed + 1; END;

CREATE TRIGGER {p}grant_deleted AFTER DELETE ON {p}grants
BEGIN UPDATE {p}changes SET changed = changed + 1; END;

CREATE TRIGGER {p}token_added AFTER INSERT ON {p}tokens
BEGIN UPDATE {p}changes SET added = added + 1; END;

CREATE TRIGGER {p}token_changed AFTER UPDATE ON {p}tokens
BEGIN UPDATE {p}changes SET changed = changed + 1; END;

CREATE TRIGGER {p}token_deleted AFTER DELETE ON {p}tokens
BEGIN UPDATE {p}changes SET changed = changed + 1; END;

-- `REPLACE` and `OR REPLACE` delete rows without running the triggers of `DELETE`. Updates are counted above in any case.
CREATE TRIGGER {p}grant_replaced BEFORE INSERT ON {p}grants
WHEN EXISTS (SELECT 1 FROM {p}grants WHERE id = NEW.id)
BEGIN UPDATE {p}changes SET changed = changed + 1; END;

CREATE TRIGGER {p}token_replaced BEFORE INSERT ON {p}tokens
WHEN EXISTS (SELECT 1 FROM {p}tokens WHERE digest = NEW.digest)
    OR (NEW.outgoing_until_ms IS NULL
        AND EXISTS (SELECT 1 FROM {p}tokens WHERE grant_id = NEW.grant_id AND outgoing_until_ms IS NULL))
BEGIN UPDATE {p}changes SET changed = changed + 1; END;
