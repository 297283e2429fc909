-- Who an agent is: the first key of each id is the only one that is taken, until it is forgotten.

CREATE TABLE daggyr.agent (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,  -- ascends as agents come
    agent_id text NOT NULL UNIQUE,
    name text NOT NULL,
    digest bytea NOT NULL               -- SHA-256 of its key
);
