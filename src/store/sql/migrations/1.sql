CREATE TABLE {p}grants (
    id TEXT NOT NULL PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 255),
    subject TEXT NOT NULL CHECK (length(subject) BETWEEN 1 AND 255),
    label TEXT NOT NULL DEFAULT '',
    scopes TEXT NOT NULL DEFAULT '',
    quota_interval_ns BIGINT,
    quota_burst BIGINT,
    not_before_ms BIGINT,
    expires_ms BIGINT,
    sender_constrained BOOLEAN NOT NULL DEFAULT FALSE,
    principal {json},
    created_ms BIGINT NOT NULL,
    revoked_ms BIGINT,
    last_used_ms BIGINT,
    -- The prefix of the newest token, without `_`. Null if it is unknown.
    token_prefix TEXT,
    CHECK ((quota_interval_ns IS NULL) = (quota_burst IS NULL))
){keyed};

CREATE INDEX {p}grants_by_subject ON {p}grants (subject);

CREATE TABLE {p}tokens (
    digest {bytes} NOT NULL PRIMARY KEY CHECK (length(digest) = 32),
    grant_id TEXT NOT NULL REFERENCES {p}grants (id) ON DELETE CASCADE,
    created_ms BIGINT NOT NULL,
    -- The end of the grace period. Null if the token was not rotated.
    rotated_until_ms BIGINT
){keyed};

CREATE INDEX {p}tokens_by_grant ON {p}tokens (grant_id);

-- A grant has at most one token that was not rotated.
CREATE UNIQUE INDEX {p}tokens_current ON {p}tokens (grant_id) WHERE rotated_until_ms IS NULL;
