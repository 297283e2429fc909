-- Each start of a coordinator, by the epoch that it took. A copy of these tables takes the same epochs at its own starts, but no other
-- start draws the same number: so an attempt that carries its start's is that of no copy.

CREATE TABLE daggyr.life (
    epoch bigint PRIMARY KEY,
    life bigint NOT NULL,               -- random, 1 to 2**63 - 1
    start_time double precision NOT NULL
);
ALTER TABLE daggyr.assignment ADD COLUMN life bigint NOT NULL DEFAULT 0; -- of the start that assigned; 0: before there were any
