-- For how long a run was RUNNING, so that a time in which it had ended is left out, and no clock that is set changes it.

ALTER TABLE run ADD COLUMN ran_seconds REAL;   -- but for the time since running_time; NULL: a version before this one wrote the row
ALTER TABLE run ADD COLUMN running_time REAL;  -- when it became RUNNING, if it is
