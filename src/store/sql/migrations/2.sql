-- The order of lists.
CREATE INDEX {p}grants_by_creation ON {p}grants (created_ms, id);
