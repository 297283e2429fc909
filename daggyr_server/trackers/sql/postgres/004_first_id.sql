-- What executors call the places of the tracker on other hosts, where the tracker was restored: what its first life was called.

ALTER TABLE daggyr.tracker ADD COLUMN first_id text NOT NULL DEFAULT '';  -- empty: it was never restored
