-- The tables of a sqlite tracker. Times are seconds since the epoch; numbers of tasks and attempts in columns that end in _list
-- are packed, 32 bits each, little-endian.

CREATE TABLE tracker (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    tracker_id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    next_run_id INTEGER NOT NULL,
    holder_host TEXT NOT NULL,
    holder_pid INTEGER NOT NULL,
    holder_since REAL NOT NULL
);

CREATE TABLE run (
    run_id INTEGER PRIMARY KEY,
    request_id TEXT NOT NULL,
    tags TEXT NOT NULL,                 -- a JSON object
    submit_pool TEXT NOT NULL,          -- the pool that it was submitted with
    pool TEXT NOT NULL,                 -- an edit may have given it another
    state INTEGER NOT NULL,             -- the contract's numbers
    submit_time REAL NOT NULL,
    start_time REAL,
    stop_time REAL,
    killing INTEGER NOT NULL DEFAULT 0,
    task_states TEXT NOT NULL DEFAULT '{}',  -- a JSON object: state's name to how many tasks, once it has ended
    output_bytes INTEGER NOT NULL DEFAULT 0, -- kept in `output`; the triggers below count
    deleting INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX run_request ON run (request_id) WHERE request_id <> '';
CREATE INDEX run_unfinished ON run (run_id) WHERE state IN (1, 2);
CREATE INDEX run_deleting ON run (run_id) WHERE deleting;

-- What a run's graph was made from: revision 0 is the specification as it came, later ones are edits and what generators
-- printed. In pieces, by their offset in bytes.
CREATE TABLE document (
    run_id INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    start INTEGER NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (run_id, revision, start)
);

CREATE TABLE growth (
    run_id INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    number INTEGER,                     -- of the generator; NULL: an edit
    attempt INTEGER,
    pool TEXT NOT NULL,                 -- of an edit: where tasks without one of their own go from then on
    kept_list BLOB NOT NULL,            -- of an edit: the revisions of the generators' tasks that are part of it
    PRIMARY KEY (run_id, revision)
) WITHOUT ROWID;

CREATE TABLE host (
    run_id INTEGER NOT NULL,
    host_key INTEGER NOT NULL,          -- made from the two names
    host TEXT NOT NULL,
    host_name TEXT NOT NULL,
    PRIMARY KEY (run_id, host_key)
) WITHOUT ROWID;

-- Attempts that were about to be sent to a host; those with no row in `attempt` are in flight.
CREATE TABLE assignment (
    id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL,
    host_key INTEGER NOT NULL,
    assign_time REAL NOT NULL,
    number_list BLOB NOT NULL,
    attempt_list BLOB NOT NULL
);
CREATE INDEX assignment_run ON assignment (run_id);

-- Attempts that ended.
CREATE TABLE attempt (
    run_id INTEGER NOT NULL,
    number INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    outcome INTEGER NOT NULL,           -- the contract's numbers
    state INTEGER NOT NULL,             -- of the task, from then on
    host_key INTEGER NOT NULL,
    assign_time REAL NOT NULL,
    result BLOB NOT NULL,               -- daggyr.v1.AttemptResult
    PRIMARY KEY (run_id, number, attempt)
) WITHOUT ROWID;

-- State changes that no attempt tells, of a run (number_list is NULL) or of tasks.
CREATE TABLE change (
    id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL,
    time REAL NOT NULL,
    state INTEGER NOT NULL,
    reason TEXT NOT NULL,
    first_number INTEGER,               -- the least and the greatest in number_list
    last_number INTEGER,
    number_list BLOB,
    attempt_list BLOB                   -- how many attempts each has had
);
CREATE INDEX change_run ON change (run_id);

CREATE TABLE output (
    id INTEGER PRIMARY KEY,             -- ascends as pieces come
    run_id INTEGER NOT NULL,
    number INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    stream INTEGER NOT NULL,
    start INTEGER NOT NULL,             -- offset in bytes
    data BLOB NOT NULL,
    UNIQUE (run_id, number, attempt, stream, start)
);
CREATE INDEX output_run ON output (run_id);
CREATE TRIGGER output_kept AFTER INSERT ON output BEGIN
    UPDATE run SET output_bytes = output_bytes + length(NEW.data) WHERE run_id = NEW.run_id;
END;
CREATE TRIGGER output_lengthened AFTER UPDATE OF data ON output BEGIN
    UPDATE run SET output_bytes = output_bytes + length(NEW.data) - length(OLD.data) WHERE run_id = NEW.run_id;
END;
CREATE TRIGGER output_dropped AFTER DELETE ON output BEGIN
    UPDATE run SET output_bytes = output_bytes - length(OLD.data) WHERE run_id = OLD.run_id;
END;
