-- How a key or an assistant came here: 'api', or 'file' for those of tandem.toml, which go when they are gone from it.

ALTER TABLE api_keys ADD COLUMN origin TEXT NOT NULL DEFAULT 'api';
ALTER TABLE assistants ADD COLUMN origin TEXT NOT NULL DEFAULT 'api';
