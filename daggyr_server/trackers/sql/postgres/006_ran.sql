-- For how long a run was RUNNING, so that a time in which it had ended is left out, and no clock that is set changes it.

ALTER TABLE daggyr.run
    ADD COLUMN ran_seconds double precision,  -- but for the time since running_time; NULL: a version before this one wrote the row
    ADD COLUMN running_time double precision;  -- when it became RUNNING, if it is
