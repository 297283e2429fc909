-- Large documents that were written before the commit that they belong to, a piece at a time, so that other commits come in between.
-- A deposit is nobody's until a commit says whose document it is; what a crash left of one that is nobody's is deleted.

CREATE TABLE daggyr.deposit_piece (
    number bigint NOT NULL,
    start bigint NOT NULL,              -- offset in bytes
    data bytea NOT NULL,
    PRIMARY KEY (number, start)
);
CREATE TABLE daggyr.deposit (
    run_id bigint NOT NULL,
    revision bigint NOT NULL,           -- as in `document`, which has no rows of this document
    number bigint NOT NULL UNIQUE,
    PRIMARY KEY (run_id, revision)
);
