-- The statements of the postgres tracker, by name. Those that write have their parameters in the order in which batch.py and
-- tracker.py give them, those that add many rows an array for each column; those that read and delete name them, as
-- ../sqlite/statements.sql does.

-- name: try_lock
-- The first number, 0x64616767, stands for these tables, the second for the coordinator that writes them.
SELECT pg_try_advisory_lock(1684105063, 1)
-- name: lock
SELECT pg_advisory_lock(1684105063, 1)
-- name: unlock
SELECT pg_advisory_unlock(1684105063, 1)
-- name: exists
SELECT to_regclass('daggyr.tracker') IS NOT NULL
-- name: version
SELECT version FROM daggyr.tracker
-- name: set_version
UPDATE daggyr.tracker SET version = %s
-- name: begin_another_life
UPDATE daggyr.tracker SET first_id = CASE first_id WHEN '' THEN tracker_id ELSE first_id END, tracker_id = %s, epoch = %s, next_run_id = %s
-- name: first_id
SELECT first_id FROM daggyr.tracker
-- name: last_sign
SELECT max(time) FROM (
    SELECT max(start_time) AS time FROM daggyr.life WHERE epoch < (SELECT epoch FROM daggyr.tracker)
    UNION ALL SELECT max(submit_time) FROM daggyr.run UNION ALL SELECT max(stop_time) FROM daggyr.run
) AS signs
-- name: add_tracker
INSERT INTO daggyr.tracker (only_row, version, tracker_id, epoch, commits, next_run_id, holder_host, holder_pid, holder_since)
VALUES (1, 1, %s, 0, 0, 1, '', 0, 0)
-- name: take_epoch
UPDATE daggyr.tracker SET epoch = epoch + 1, holder_host = %s, holder_pid = %s, holder_since = %s
-- name: add_life
INSERT INTO daggyr.life (epoch, life, start_time) SELECT epoch, %s, holder_since FROM daggyr.tracker
-- name: lives
SELECT epoch, life FROM daggyr.life ORDER BY epoch DESC LIMIT %s
-- name: tracker
SELECT tracker_id, epoch, next_run_id, commits FROM daggyr.tracker
-- name: holder
SELECT holder_host, holder_pid, holder_since FROM daggyr.tracker
-- name: count_commit
-- This also locks the row, so that whoever takes the next epoch waits until this transaction has ended.
UPDATE daggyr.tracker SET commits = %s WHERE tracker_id = %s AND epoch = %s

-- What happens to a run itself, one record after the other.

-- name: add_run
INSERT INTO daggyr.run (run_id, request_id, tags, submit_pool, pool, state, submit_time) VALUES (%s, %s, %s, %s, %s, %s, %s)
-- name: take_run_id
UPDATE daggyr.tracker SET next_run_id = greatest(next_run_id, 1 + %s)
-- name: queue_run
UPDATE daggyr.run SET state = %s, ran_seconds = %s, running_time = NULL, stop_time = NULL, task_states = '{}', killing = false
WHERE run_id = %s
-- name: start_run
UPDATE daggyr.run SET state = %s, ran_seconds = %s, running_time = %s, start_time = coalesce(start_time, %s) WHERE run_id = %s
-- name: end_run
UPDATE daggyr.run SET state = %s, ran_seconds = %s, running_time = NULL, stop_time = %s, task_states = %s WHERE run_id = %s
-- name: kill_run
UPDATE daggyr.run SET killing = true WHERE run_id = %s
-- name: edit_run
UPDATE daggyr.run SET tags = %s, pool = %s WHERE run_id = %s
-- name: stop_tasks
UPDATE daggyr.run SET stopped_list = %s WHERE run_id = %s
-- name: add_growth
INSERT INTO daggyr.growth (run_id, revision, number, attempt, pool, kept_list) VALUES (%s, %s, %s, %s, %s, %s)
-- name: note_move
INSERT INTO daggyr.change (run_id, time, state, reason) VALUES (%s, %s, %s, '')
-- name: note_asked
INSERT INTO daggyr.change (run_id, time, state, reason) SELECT run_id, %s, state, %s FROM daggyr.run WHERE run_id = %s

-- Agents' keys.

-- name: pin_agent
INSERT INTO daggyr.agent (agent_id, name, digest) VALUES (%s, %s, %s)
ON CONFLICT (agent_id) DO UPDATE SET name = excluded.name, digest = excluded.digest
-- name: forget_agent
DELETE FROM daggyr.agent WHERE agent_id = %s
-- name: pins
SELECT agent_id, name, digest FROM daggyr.agent ORDER BY id

-- What comes in large numbers.

-- name: add_documents
INSERT INTO daggyr.document (run_id, revision, start, data)
SELECT * FROM unnest(%b::bigint[], %b::bigint[], %b::bigint[], %b::bytea[])
-- name: add_hosts
INSERT INTO daggyr.host (run_id, host_key, host, host_name)
SELECT * FROM unnest(%b::bigint[], %b::bigint[], %b::text[], %b::text[]) ON CONFLICT DO NOTHING
-- name: add_assignments
INSERT INTO daggyr.assignment (run_id, host_key, assign_time, number_list, attempt_list, life)
SELECT * FROM unnest(%b::bigint[], %b::bigint[], %b::double precision[], %b::bytea[], %b::bytea[], %b::bigint[])
-- name: add_attempts
INSERT INTO daggyr.attempt (run_id, number, attempt, outcome, state, host_key, assign_time, result)
SELECT * FROM unnest(
    %b::bigint[], %b::bigint[], %b::bigint[], %b::smallint[], %b::smallint[], %b::bigint[], %b::double precision[], %b::bytea[]
)
-- name: add_changes
INSERT INTO daggyr.change (run_id, time, state, reason, first_number, last_number, number_list, attempt_list)
SELECT * FROM unnest(
    %b::bigint[], %b::double precision[], %b::smallint[], %b::text[], %b::bigint[], %b::bigint[], %b::bytea[], %b::bytea[]
)
-- name: add_output
-- All parts of the statement see the table as it was before it; so `before` has the sizes of the rows that are replaced.
WITH given AS (
    SELECT * FROM unnest(%b::bigint[], %b::bigint[], %b::bigint[], %b::smallint[], %b::bigint[], %b::bytea[])
    AS row (run_id, number, attempt, stream, start, data)
), before AS (
    SELECT run_id, number, attempt, stream, start, length(known.data) AS size
    FROM given JOIN daggyr.output AS known USING (run_id, number, attempt, stream, start)
), kept AS (
    INSERT INTO daggyr.output AS known (run_id, number, attempt, stream, start, data) SELECT * FROM given
    ON CONFLICT (run_id, number, attempt, stream, start) DO UPDATE SET data = excluded.data
    WHERE length(excluded.data) > length(known.data)
    RETURNING run_id, number, attempt, stream, start, length(data) AS size
)
UPDATE daggyr.run SET output_bytes = output_bytes + added.size FROM (
    SELECT run_id, sum(kept.size - coalesce(before.size, 0)) AS size
    FROM kept LEFT JOIN before USING (run_id, number, attempt, stream, start) GROUP BY run_id
) AS added WHERE run.run_id = added.run_id
-- name: keep_generated
INSERT INTO daggyr.document (run_id, revision, start, data)
SELECT output.run_id, added.revision, start, data
FROM unnest(%b::bigint[], %b::bigint[], %b::bigint[], %b::bigint[]) AS added (revision, run_id, number, attempt)
JOIN daggyr.output ON output.run_id = added.run_id AND output.number = added.number AND output.attempt = added.attempt AND stream = 1
-- name: above_limit
SELECT run_id, output_bytes - %(limit)s FROM daggyr.run WHERE run_id = ANY(%(runs)s) AND output_bytes > %(limit)s
-- name: drop_oldest
-- Only output of attempts that have ended goes, because what a generator prints is needed until it has ended.
WITH gone AS (
    DELETE FROM daggyr.output WHERE id = ANY (ARRAY(
        SELECT id FROM (
            SELECT id, sum(size) OVER (ORDER BY id) - size AS before FROM (
                SELECT id, length(data) AS size FROM daggyr.output AS kept
                WHERE run_id = %(run_id)s AND EXISTS (
                    SELECT 1 FROM daggyr.attempt
                    WHERE attempt.run_id = kept.run_id AND attempt.number = kept.number AND attempt.attempt = kept.attempt
                )
                ORDER BY id LIMIT 10000
            ) AS oldest
        ) AS summed WHERE before < %(bytes)s
    )) RETURNING length(data) AS size
)
UPDATE daggyr.run SET output_bytes = output_bytes - (SELECT coalesce(sum(size), 0) FROM gone) WHERE run_id = %(run_id)s

-- Deposits.

-- name: last_deposit
SELECT max(number) FROM (
    SELECT max(number) AS number FROM daggyr.deposit_piece UNION ALL SELECT max(number) FROM daggyr.deposit
) AS numbers
-- name: add_deposit_piece
INSERT INTO daggyr.deposit_piece (number, start, data) VALUES (%s, %s, %b) ON CONFLICT DO NOTHING
-- name: claim_deposit
INSERT INTO daggyr.deposit (run_id, revision, number) VALUES (%s, %s, %s)
-- name: deposits
SELECT DISTINCT number FROM daggyr.deposit_piece WHERE number NOT IN (SELECT number FROM daggyr.deposit) ORDER BY number
-- name: is_deposit
SELECT 1 FROM daggyr.deposit_piece WHERE number = %(number)s AND %(number)s NOT IN (SELECT number FROM daggyr.deposit) LIMIT 1
-- name: discard_deposit
DELETE FROM daggyr.deposit_piece WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM daggyr.deposit_piece WHERE number = %(number)s AND number NOT IN (SELECT number FROM daggyr.deposit) ORDER BY number, start LIMIT least(%(limit)s, 4)
))

-- Reading. A run that is being deleted is not known.

-- name: document
-- It stands in one of the two.
SELECT start, data FROM daggyr.document WHERE run_id = %(run_id)s AND revision = %(revision)s
UNION ALL SELECT start, data FROM daggyr.deposit_piece
WHERE number = (SELECT number FROM daggyr.deposit WHERE run_id = %(run_id)s AND revision = %(revision)s)
ORDER BY start
-- name: has_document
SELECT 1 FROM daggyr.run WHERE run_id = %(run_id)s AND NOT deleting
AND (%(revision)s = 0 OR EXISTS (SELECT 1 FROM daggyr.growth WHERE run_id = %(run_id)s AND revision = %(revision)s))
-- name: run
SELECT run_id, request_id, tags, pool, state, submit_time, start_time, stop_time, killing, task_states,
(SELECT count(*) FROM daggyr.growth WHERE growth.run_id = run.run_id), length(stopped_list) / 4, ran_seconds, running_time,
submit_pool, stopped_list
FROM daggyr.run WHERE run_id = %(run_id)s AND NOT deleting
-- name: runs
SELECT run_id, request_id, tags, pool, state, submit_time, start_time, stop_time, killing, task_states, growths, stopped,
ran_seconds, running_time FROM (
    SELECT *, sum(octet_length(tags)) OVER (ORDER BY run_id DESC) - octet_length(tags) AS size_before FROM (
        SELECT run_id, request_id, tags, pool, state, submit_time, start_time, stop_time, killing, task_states,
        (SELECT count(*) FROM daggyr.growth WHERE growth.run_id = run.run_id) AS growths, length(stopped_list) / 4 AS stopped,
        ran_seconds, running_time
        FROM daggyr.run WHERE run_id < %(before)s::bigint AND NOT deleting ORDER BY run_id DESC LIMIT %(limit)s
    ) AS newest
) AS sized WHERE size_before < %(most)s::bigint ORDER BY run_id DESC
-- name: wanted_runs
-- Among few runs, because the plan of a statement that is kept sorts all that are between the two bounds.
SELECT run_id, request_id, tags, pool, state, submit_time, start_time, stop_time, killing, task_states, growths, stopped,
ran_seconds, running_time FROM (
    SELECT *, sum(octet_length(tags)) OVER (ORDER BY run_id DESC) - octet_length(tags) AS size_before FROM (
        SELECT run_id, request_id, tags, pool, state, submit_time, start_time, stop_time, killing, task_states,
        (SELECT count(*) FROM daggyr.growth WHERE growth.run_id = run.run_id) AS growths, length(stopped_list) / 4 AS stopped,
        ran_seconds, running_time
        FROM daggyr.run WHERE run_id < %(before)s::bigint AND run_id >= %(lowest)s::bigint AND NOT deleting
        AND state <> ALL(%(unwanted)s::smallint[])
        AND submit_time >= %(since)s::double precision AND submit_time < %(until)s::double precision
        AND (%(ended_before)s::double precision = 'infinity' OR stop_time < %(ended_before)s::double precision)
        AND NOT EXISTS (SELECT FROM unnest(%(tags)s::text[]) AS tag (text) WHERE strpos(tags, tag.text) = 0)
        ORDER BY run_id DESC LIMIT %(limit)s
    ) AS newest
) AS sized WHERE size_before < %(most)s::bigint ORDER BY run_id DESC
-- name: scanned
SELECT min(run_id) FROM (
    SELECT run_id FROM daggyr.run WHERE run_id < %(before)s::bigint ORDER BY run_id DESC LIMIT %(count)s
) AS newest
-- name: unfinished
SELECT run_id FROM daggyr.run WHERE state IN (1, 2) AND NOT deleting ORDER BY run_id
-- name: find_request
SELECT run_id FROM daggyr.run WHERE request_id = %(request_id)s AND request_id <> ''
-- name: growths
SELECT revision, number, attempt, pool, kept_list FROM daggyr.growth WHERE run_id = %(run_id)s ORDER BY revision
-- name: assignments
SELECT host_key, assign_time, number_list, attempt_list, life FROM daggyr.assignment WHERE run_id = %(run_id)s ORDER BY id
-- name: hosts
SELECT host_key, host, host_name FROM daggyr.host WHERE run_id = %(run_id)s
-- name: task_changes
SELECT state, number_list, attempt_list FROM daggyr.change WHERE run_id = %(run_id)s AND number_list IS NOT NULL ORDER BY id
-- name: ended
SELECT number, attempt, outcome, state FROM daggyr.attempt WHERE run_id = %(run_id)s ORDER BY number, attempt
-- name: attempts
SELECT attempt, host, host_name, assign_time, result FROM (
    SELECT * FROM daggyr.attempt
    WHERE run_id = %(run_id)s AND number = %(number)s AND attempt < %(before)s::bigint
    AND EXISTS (SELECT 1 FROM daggyr.run WHERE run_id = %(run_id)s AND NOT deleting)
    ORDER BY attempt DESC LIMIT %(limit)s
) AS last JOIN daggyr.host USING (run_id, host_key) ORDER BY attempt
-- name: results
-- The attempts that are asked for are a JSON array of pairs, task and attempt.
SELECT number, attempt, result FROM json_array_elements(%(attempts)s::text::json) AS asked (pair) JOIN daggyr.attempt
ON run_id = %(run_id)s AND number = (pair ->> 0)::bigint AND attempt = (pair ->> 1)::bigint
WHERE EXISTS (SELECT 1 FROM daggyr.run WHERE run_id = %(run_id)s AND NOT deleting)
-- name: output
SELECT start, data FROM (
    SELECT start, data, sum(size) OVER (ORDER BY start) - size AS before FROM (
        SELECT start, data, length(data) AS size FROM daggyr.output
        WHERE run_id = %(run_id)s AND number = %(number)s AND attempt = %(attempt)s AND stream = %(stream)s
        AND start > %(offset)s::bigint - 262144 AND start + length(data) > %(offset)s::bigint
        AND EXISTS (SELECT 1 FROM daggyr.run WHERE run_id = %(run_id)s AND NOT deleting)
        ORDER BY start LIMIT 1000
    ) AS found
) AS summed WHERE before < %(limit)s ORDER BY start
-- name: run_history
-- Of tasks that a person moved, the first three and how many they are; an edit is told by the run's own change.
SELECT time, state, reason, substr(number_list, 1, 12), coalesce(length(number_list), 0) / 4 FROM daggyr.change
WHERE run_id = %(run_id)s AND (number_list IS NULL OR reason IN ('kill', 'retry', 'mark'))
AND EXISTS (SELECT 1 FROM daggyr.run WHERE run_id = %(run_id)s AND NOT deleting) ORDER BY id
-- name: task_history
SELECT time, state, reason, number_list FROM daggyr.change
WHERE run_id = %(run_id)s AND first_number <= %(number)s AND last_number >= %(number)s
AND EXISTS (SELECT 1 FROM daggyr.run WHERE run_id = %(run_id)s AND NOT deleting) ORDER BY id

-- Deleting, in slices.

-- name: deleting
SELECT run_id FROM daggyr.run WHERE deleting ORDER BY run_id
-- name: begin_deleting
UPDATE daggyr.run SET deleting = true, request_id = '' WHERE run_id = ANY(%(run_ids)s::bigint[]) AND NOT deleting
-- Rows are found run by run, in the order of an index, and deleted by their places in the table (ctid), so that no plan reads the
-- whole table.
-- name: delete_output
DELETE FROM daggyr.output WHERE ctid = ANY (ARRAY(
    SELECT place FROM (
        SELECT place, sum(size) OVER (ROWS UNBOUNDED PRECEDING) - size AS before
        FROM unnest(%(run_ids)s::bigint[]) AS asked (id) CROSS JOIN LATERAL (
            SELECT ctid AS place, length(data) AS size FROM daggyr.output
            WHERE run_id = asked.id ORDER BY run_id, id LIMIT %(limit)s
        ) AS found LIMIT %(limit)s
    ) AS summed WHERE before < 2097152
))
-- name: delete_attempts
DELETE FROM daggyr.attempt WHERE ctid = ANY (ARRAY(
    SELECT place FROM unnest(%(run_ids)s::bigint[]) AS asked (id) CROSS JOIN LATERAL (
        SELECT ctid AS place FROM daggyr.attempt WHERE run_id = asked.id ORDER BY run_id, number, attempt LIMIT %(limit)s
    ) AS found LIMIT %(limit)s
))
-- name: delete_assignments
DELETE FROM daggyr.assignment WHERE ctid = ANY (ARRAY(
    SELECT place FROM unnest(%(run_ids)s::bigint[]) AS asked (id) CROSS JOIN LATERAL (
        SELECT ctid AS place FROM daggyr.assignment WHERE run_id = asked.id ORDER BY run_id, id LIMIT %(limit)s
    ) AS found LIMIT %(limit)s
))
-- name: delete_changes
DELETE FROM daggyr.change WHERE ctid = ANY (ARRAY(
    SELECT place FROM unnest(%(run_ids)s::bigint[]) AS asked (id) CROSS JOIN LATERAL (
        SELECT ctid AS place FROM daggyr.change WHERE run_id = asked.id ORDER BY run_id, id LIMIT %(limit)s
    ) AS found LIMIT %(limit)s
))
-- name: delete_documents
DELETE FROM daggyr.document WHERE ctid = ANY (ARRAY(
    SELECT place FROM (
        SELECT place, sum(size) OVER (ROWS UNBOUNDED PRECEDING) - size AS before
        FROM unnest(%(run_ids)s::bigint[]) AS asked (id) CROSS JOIN LATERAL (
            SELECT ctid AS place, length(data) AS size FROM daggyr.document
            WHERE run_id = asked.id ORDER BY run_id, revision, start LIMIT %(limit)s
        ) AS found LIMIT %(limit)s
    ) AS summed WHERE before < 4194304
))
-- name: delete_deposit_pieces
DELETE FROM daggyr.deposit_piece WHERE ctid = ANY (ARRAY(
    SELECT piece.ctid FROM daggyr.deposit JOIN daggyr.deposit_piece AS piece USING (number)
    WHERE run_id = ANY(%(run_ids)s::bigint[]) LIMIT least(%(limit)s, 4)
))
-- name: delete_deposits
DELETE FROM daggyr.deposit WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM daggyr.deposit WHERE run_id = ANY(%(run_ids)s::bigint[]) LIMIT %(limit)s
))
-- name: delete_growths
DELETE FROM daggyr.growth WHERE ctid = ANY (ARRAY(
    SELECT place FROM unnest(%(run_ids)s::bigint[]) AS asked (id) CROSS JOIN LATERAL (
        SELECT ctid AS place FROM daggyr.growth WHERE run_id = asked.id ORDER BY run_id, revision LIMIT %(limit)s
    ) AS found LIMIT %(limit)s
))
-- name: delete_hosts
DELETE FROM daggyr.host WHERE ctid = ANY (ARRAY(
    SELECT place FROM unnest(%(run_ids)s::bigint[]) AS asked (id) CROSS JOIN LATERAL (
        SELECT ctid AS place FROM daggyr.host WHERE run_id = asked.id ORDER BY run_id, host_key LIMIT %(limit)s
    ) AS found LIMIT %(limit)s
))
-- name: delete_run
DELETE FROM daggyr.run WHERE run_id = ANY(%(run_ids)s::bigint[]) AND deleting
