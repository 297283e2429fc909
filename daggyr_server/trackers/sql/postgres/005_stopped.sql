-- Tasks that a kill of their run left behind, and that nobody has asked for since.

ALTER TABLE daggyr.run ADD COLUMN stopped_list bytea NOT NULL DEFAULT '';
