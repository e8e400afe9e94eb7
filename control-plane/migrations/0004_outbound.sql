-- Calls that we place: over which trunk, of which bulk, and what their caller wants to find again. JSON.

ALTER TABLE calls ADD COLUMN origin TEXT NOT NULL DEFAULT '{}';
