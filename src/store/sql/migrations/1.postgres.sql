-- What was changed is told to who listens: `added` for a token, the id of a grant behind `grant `, or `everything`. Digests
-- are not told, since every role of the database may listen. The channel is that of the schema: others may have such tables.
CREATE FUNCTION {p}tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('{p}changes_' || (SELECT relnamespace FROM pg_class WHERE oid = TG_RELID), CASE
        WHEN TG_OP = 'INSERT' THEN 'added'
        WHEN TG_OP = 'TRUNCATE' THEN 'everything'
        WHEN TG_ARGV[0] = 'grants' THEN 'grant ' || (to_jsonb(OLD) ->> 'id')
        ELSE 'grant ' || (to_jsonb(OLD) ->> 'grant_id')
    END);
    RETURN NULL;
END
$$;

CREATE TRIGGER {p}grant_changed
AFTER UPDATE OF id, subject, label, scopes, quota_interval_ns, quota_burst, not_before_ms, expires_ms, sender_constrained,
    principal, created_ms, revoked_ms ON {p}grants
FOR EACH ROW EXECUTE FUNCTION {p}tell('grants');

CREATE TRIGGER {p}grant_deleted AFTER DELETE ON {p}grants
FOR EACH ROW EXECUTE FUNCTION {p}tell('grants');

CREATE TRIGGER {p}grants_truncated AFTER TRUNCATE ON {p}grants
FOR EACH STATEMENT EXECUTE FUNCTION {p}tell('grants');

CREATE TRIGGER {p}token_told AFTER INSERT OR UPDATE OR DELETE ON {p}tokens
FOR EACH ROW EXECUTE FUNCTION {p}tell('tokens');

CREATE TRIGGER {p}tokens_truncated AFTER TRUNCATE ON {p}tokens
FOR EACH STATEMENT EXECUTE FUNCTION {p}tell('tokens');
