-- What tells a file that lost something from one that is whole: how many commits it has seen, and whether it was in use when it was
-- left. A version before this one told neither.

ALTER TABLE tracker ADD COLUMN commits INTEGER NOT NULL DEFAULT 0;  -- of all epochs
ALTER TABLE tracker ADD COLUMN standing INTEGER NOT NULL DEFAULT 0; -- 0: stopped; 1: in use, or left by a crash; 2: a copy
ALTER TABLE tracker ADD COLUMN copy_time REAL;                      -- when the copy was made

-- What executors call the places of the tracker on other hosts, where the tracker was restored: what its first life was called.
ALTER TABLE tracker ADD COLUMN first_id TEXT NOT NULL DEFAULT '';   -- empty: it was never restored
