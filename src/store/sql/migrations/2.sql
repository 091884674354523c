-- Changes of grants, written in the transaction of each change. Never contains tokens or digests.
CREATE TABLE {p}audit (
    id {serial},
    at_ms BIGINT NOT NULL,
    -- Given by the application. Null if it is unknown.
    actor TEXT,
    action TEXT NOT NULL,
    grant_id TEXT NOT NULL,
    subject TEXT NOT NULL,
    -- The changed fields, such as {"quota": {"from": "3/s", "to": "20/s"}}.
    changes {json}
);

CREATE INDEX {p}audit_by_grant ON {p}audit (grant_id, id);

CREATE INDEX {p}audit_by_subject ON {p}audit (subject, id);
