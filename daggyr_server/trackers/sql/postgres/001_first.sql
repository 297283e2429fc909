-- The tables of a postgres tracker, in a schema of their own. Times are seconds since the epoch; numbers of tasks and attempts in
-- columns that end in _list are packed, 32 bits each, little-endian.

CREATE SCHEMA IF NOT EXISTS daggyr;

CREATE TABLE daggyr.tracker (
    only_row smallint PRIMARY KEY CHECK (only_row = 1),
    version integer NOT NULL,           -- the last migration that was applied
    tracker_id text NOT NULL,
    epoch bigint NOT NULL,
    commits bigint NOT NULL,            -- of all epochs: tells whether one, whose answer was lost, was kept
    next_run_id bigint NOT NULL,
    holder_host text NOT NULL,
    holder_pid bigint NOT NULL,
    holder_since double precision NOT NULL
);

CREATE TABLE daggyr.run (
    run_id bigint PRIMARY KEY,
    request_id text NOT NULL,
    tags text NOT NULL,                 -- a JSON object
    submit_pool text NOT NULL,          -- the pool that it was submitted with
    pool text NOT NULL,                 -- an edit may have given it another
    state smallint NOT NULL,            -- the contract's numbers
    submit_time double precision NOT NULL,
    start_time double precision,
    stop_time double precision,
    killing boolean NOT NULL DEFAULT false,
    task_states text NOT NULL DEFAULT '{}',  -- a JSON object: state's name to how many tasks, once it has ended
    output_bytes bigint NOT NULL DEFAULT 0,  -- kept in `output`
    deleting boolean NOT NULL DEFAULT false
);
CREATE UNIQUE INDEX run_request ON daggyr.run (request_id) WHERE request_id <> '';
CREATE INDEX run_unfinished ON daggyr.run (run_id) WHERE state IN (1, 2);
CREATE INDEX run_deleting ON daggyr.run (run_id) WHERE deleting;

-- What a run's graph was made from: revision 0 is the specification as it came, later ones are edits and what generators
-- printed. In pieces, by their offset in bytes.
CREATE TABLE daggyr.document (
    run_id bigint NOT NULL,
    revision bigint NOT NULL,
    start bigint NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (run_id, revision, start)
);

CREATE TABLE daggyr.growth (
    run_id bigint NOT NULL,
    revision bigint NOT NULL,
    number bigint,                      -- of the generator; NULL: an edit
    attempt bigint,
    pool text NOT NULL,                 -- of an edit: where tasks without one of their own go from then on
    kept_list bytea NOT NULL,            -- of an edit: the revisions of the generators' tasks that are part of it
    PRIMARY KEY (run_id, revision)
);

CREATE TABLE daggyr.host (
    run_id bigint NOT NULL,
    host_key bigint NOT NULL,           -- made from the two names
    host text NOT NULL,
    host_name text NOT NULL,
    PRIMARY KEY (run_id, host_key)
);

-- Attempts that were about to be sent to a host; those with no row in `attempt` are in flight.
CREATE TABLE daggyr.assignment (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id bigint NOT NULL,
    host_key bigint NOT NULL,
    assign_time double precision NOT NULL,
    number_list bytea NOT NULL,
    attempt_list bytea NOT NULL
);
CREATE INDEX assignment_run ON daggyr.assignment (run_id, id);

-- Attempts that ended.
CREATE TABLE daggyr.attempt (
    run_id bigint NOT NULL,
    number bigint NOT NULL,
    attempt bigint NOT NULL,
    outcome smallint NOT NULL,          -- the contract's numbers
    state smallint NOT NULL,            -- of the task, from then on
    host_key bigint NOT NULL,
    assign_time double precision NOT NULL,
    result bytea NOT NULL,              -- daggyr.v1.AttemptResult
    PRIMARY KEY (run_id, number, attempt)
);

-- State changes that no attempt tells, of a run (number_list is NULL) or of tasks.
CREATE TABLE daggyr.change (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id bigint NOT NULL,
    time double precision NOT NULL,
    state smallint NOT NULL,
    reason text NOT NULL,
    first_number bigint,                -- the least and the greatest in number_list
    last_number bigint,
    number_list bytea,
    attempt_list bytea                  -- how many attempts each has had
);
CREATE INDEX change_run ON daggyr.change (run_id, id);

CREATE TABLE daggyr.output (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,  -- ascends as pieces come
    run_id bigint NOT NULL,
    number bigint NOT NULL,
    attempt bigint NOT NULL,
    stream smallint NOT NULL,
    start bigint NOT NULL,              -- offset in bytes
    data bytea NOT NULL,
    UNIQUE (run_id, number, attempt, stream, start)
);
CREATE INDEX output_run ON daggyr.output (run_id, id);
