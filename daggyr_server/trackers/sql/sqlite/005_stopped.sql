-- Tasks that a kill of their run left behind, and that nobody has asked for since.

ALTER TABLE run ADD COLUMN stopped_list BLOB NOT NULL DEFAULT x'';
