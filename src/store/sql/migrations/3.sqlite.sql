-- The location of the token in the last recorded use, such as `authorization_header`. Null if it is unknown.
ALTER TABLE {p}grants ADD COLUMN last_used_location TEXT;
