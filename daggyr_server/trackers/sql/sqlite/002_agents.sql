-- Who an agent is: the first key of each id is the only one that is taken, until it is forgotten.

CREATE TABLE agent (
    id INTEGER PRIMARY KEY,             -- ascends as agents come
    agent_id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    digest BLOB NOT NULL                -- SHA-256 of its key
);
