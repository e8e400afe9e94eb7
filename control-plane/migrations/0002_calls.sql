-- One row a call, written behind the call: at its start, at changes, and at its end.
-- `decisions`, `ending` and `media` are JSON: they are read as a whole, and only with their call.

CREATE TABLE calls (
    call_id      TEXT PRIMARY KEY,
    tenant_id    TEXT NOT NULL,
    assistant_id TEXT NOT NULL,
    direction    TEXT NOT NULL,
    caller       TEXT NOT NULL,
    callee       TEXT NOT NULL,
    state        TEXT NOT NULL,
    created_ms   BIGINT NOT NULL,
    answered_ms  BIGINT NOT NULL,
    ended_ms     BIGINT NOT NULL,
    ending       TEXT NOT NULL,
    decisions    TEXT NOT NULL,
    media        TEXT NOT NULL
);
-- Ids are UUIDs of version 7: their order is the order of time.
CREATE INDEX calls_of_tenant ON calls (tenant_id, call_id);
CREATE INDEX calls_unfinished ON calls (ended_ms) WHERE ended_ms = 0;

-- What was said. The voice agent writes it; a repeated message_id replaces the text.
CREATE TABLE messages (
    call_id     TEXT NOT NULL,
    message_id  TEXT NOT NULL,
    turn        BIGINT NOT NULL,
    role        TEXT NOT NULL,
    body        TEXT NOT NULL,
    interrupted BIGINT NOT NULL,
    started_ms  BIGINT NOT NULL,
    heard_ms    BIGINT NOT NULL,
    timing      TEXT NOT NULL,
    PRIMARY KEY (call_id, message_id)
);
