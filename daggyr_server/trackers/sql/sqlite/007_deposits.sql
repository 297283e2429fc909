-- Large documents that were written before the commit that they belong to, a piece at a time, so that other commits come in between.
-- A deposit is nobody's until a commit says whose document it is; what a crash left of one that is nobody's is deleted.

CREATE TABLE deposit_piece (
    number INTEGER NOT NULL,
    start INTEGER NOT NULL,             -- offset in bytes
    data BLOB NOT NULL,
    UNIQUE (number, start)
);
CREATE TABLE deposit (
    run_id INTEGER NOT NULL,
    revision INTEGER NOT NULL,          -- as in `document`, which has no rows of this document
    number INTEGER NOT NULL,
    PRIMARY KEY (run_id, revision)
) WITHOUT ROWID;
CREATE UNIQUE INDEX deposit_number ON deposit (number);
