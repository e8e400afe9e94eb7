-- Who may use this installation, and whom their callers reach.

CREATE TABLE tenants (
    tenant_id  TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    created_ms BIGINT NOT NULL
);

-- A key is never stored. `lookup` is the first 8 octets of its SHA-256, so that the full hash can be compared in
-- constant time and not by the index; `prefix` is what people recognise a key by.
CREATE TABLE api_keys (
    key_id     TEXT PRIMARY KEY,
    tenant_id  TEXT NOT NULL REFERENCES tenants (tenant_id),
    prefix     TEXT NOT NULL,
    lookup     BLOB NOT NULL,
    hash       BLOB NOT NULL,
    created_ms BIGINT NOT NULL,
    revoked_ms BIGINT
);
CREATE INDEX api_keys_by_lookup ON api_keys (lookup);

CREATE TABLE assistants (
    tenant_id     TEXT NOT NULL REFERENCES tenants (tenant_id),
    assistant_id  TEXT NOT NULL,
    agent_kind    TEXT NOT NULL,
    agent_options TEXT NOT NULL,
    created_ms    BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, assistant_id)
);
