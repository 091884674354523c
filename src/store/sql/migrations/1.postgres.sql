-- Notifies listeners of changes: `added` for a new token, `grant ` and the id of a grant, or `everything`. Notifications never
-- contain digests, because every role of the database may listen. Each schema has its own channel.
CREATE FUNCTION {p}notify() RETURNS trigger LANGUAGE plpgsql AS $$
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
FOR EACH ROW EXECUTE FUNCTION {p}notify('grants');

CREATE TRIGGER {p}grant_deleted AFTER DELETE ON {p}grants
FOR EACH ROW EXECUTE FUNCTION {p}notify('grants');

CREATE TRIGGER {p}grants_truncated AFTER TRUNCATE ON {p}grants
FOR EACH STATEMENT EXECUTE FUNCTION {p}notify('grants');

CREATE TRIGGER {p}token_changed AFTER INSERT OR UPDATE OR DELETE ON {p}tokens
FOR EACH ROW EXECUTE FUNCTION {p}notify('tokens');

CREATE TRIGGER {p}tokens_truncated AFTER TRUNCATE ON {p}tokens
FOR EACH STATEMENT EXECUTE FUNCTION {p}notify('tokens');
