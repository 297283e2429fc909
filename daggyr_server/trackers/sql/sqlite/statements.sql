-- The statements of the sqlite tracker, by name. Those that write have their parameters in the order in which batch.py and
-- tracker.py give them; those that read and delete name them, as ../postgres/statements.sql does.

-- name: take_epoch
UPDATE tracker SET epoch = epoch + 1, commits = commits + 1, standing = 1, holder_host = ?, holder_pid = ?, holder_since = ?
-- name: count_commit
UPDATE tracker SET commits = commits + 1 WHERE tracker_id = ? AND epoch = ?
-- name: stop
UPDATE tracker SET commits = commits + 1, standing = 0 WHERE tracker_id = ? AND epoch = ?
-- name: make_copy
UPDATE tracker SET standing = 2, copy_time = ?
-- name: take_copy
UPDATE tracker SET standing = 0
-- name: holdings
SELECT count(*), coalesce(sum(state IN (1, 2)), 0) FROM run WHERE NOT deleting
-- name: standing
SELECT tracker_id, epoch, commits, standing FROM tracker
-- name: add_life
INSERT INTO life (epoch, life, start_time) SELECT epoch, ?, holder_since FROM tracker
-- name: lives
SELECT epoch, life FROM life ORDER BY epoch DESC LIMIT ?
-- name: begin_another_life
UPDATE tracker SET first_id = CASE first_id WHEN '' THEN tracker_id ELSE first_id END, tracker_id = ?, epoch = ?, next_run_id = ?
-- name: first_id
SELECT first_id FROM tracker
-- name: last_sign
SELECT max(time) FROM (
    SELECT max(start_time) AS time FROM life WHERE epoch < (SELECT epoch FROM tracker)
    UNION ALL SELECT max(submit_time) FROM run UNION ALL SELECT max(stop_time) FROM run
) AS signs
-- name: add_tracker
INSERT INTO tracker (only_row, tracker_id, epoch, next_run_id, holder_host, holder_pid, holder_since) VALUES (1, ?, 0, 1, '', 0, 0)
-- name: tracker
SELECT tracker_id, epoch, next_run_id, holder_host, holder_pid, holder_since FROM tracker

-- What happens to a run itself, one record after the other.

-- name: add_run
INSERT INTO run (run_id, request_id, tags, submit_pool, pool, state, submit_time) VALUES (?, ?, ?, ?, ?, ?, ?)
-- name: take_run_id
UPDATE tracker SET next_run_id = max(next_run_id, 1 + ?)
-- name: queue_run
UPDATE run SET state = ?, ran_seconds = ?, running_time = NULL, stop_time = NULL, task_states = '{}', killing = 0
WHERE run_id = ?
-- name: start_run
UPDATE run SET state = ?, ran_seconds = ?, running_time = ?, start_time = coalesce(start_time, ?) WHERE run_id = ?
-- name: end_run
UPDATE run SET state = ?, ran_seconds = ?, running_time = NULL, stop_time = ?, task_states = ? WHERE run_id = ?
-- name: kill_run
UPDATE run SET killing = 1 WHERE run_id = ?
-- name: edit_run
UPDATE run SET tags = ?, pool = ? WHERE run_id = ?
-- name: stop_tasks
UPDATE run SET stopped_list = ? WHERE run_id = ?
-- name: add_growth
INSERT INTO growth (run_id, revision, number, attempt, pool, kept_list) VALUES (?, ?, ?, ?, ?, ?)
-- name: note_move
INSERT INTO change (run_id, time, state, reason) VALUES (?, ?, ?, '')
-- name: note_asked
INSERT INTO change (run_id, time, state, reason) SELECT run_id, ?, state, ? FROM run WHERE run_id = ?

-- Agents' keys.

-- name: pin_agent
INSERT INTO agent (agent_id, name, digest) VALUES (?, ?, ?)
ON CONFLICT (agent_id) DO UPDATE SET name = excluded.name, digest = excluded.digest
-- name: forget_agent
DELETE FROM agent WHERE agent_id = ?
-- name: pins
SELECT agent_id, name, digest FROM agent ORDER BY id

-- What comes in large numbers.

-- name: add_documents
INSERT INTO document (run_id, revision, start, data) VALUES (?, ?, ?, ?)
-- name: add_hosts
INSERT INTO host (run_id, host_key, host, host_name) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING
-- name: add_assignments
INSERT INTO assignment (run_id, host_key, assign_time, number_list, attempt_list, life) VALUES (?, ?, ?, ?, ?, ?)
-- name: add_attempts
INSERT INTO attempt (run_id, number, attempt, outcome, state, host_key, assign_time, result) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
-- name: add_changes
INSERT INTO change (run_id, time, state, reason, first_number, last_number, number_list, attempt_list)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
-- name: add_output
INSERT INTO output (run_id, number, attempt, stream, start, data) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET data = excluded.data WHERE length(excluded.data) > length(data)
-- name: keep_generated
INSERT INTO document (run_id, revision, start, data)
SELECT run_id, ?, start, data FROM output WHERE run_id = ? AND number = ? AND attempt = ? AND stream = 1
-- name: above_limit
SELECT output_bytes - ?2 FROM run WHERE run_id = ?1 AND output_bytes > ?2
-- name: drop_oldest
-- Only output of attempts that have ended goes, because what a generator prints is needed until it has ended.
DELETE FROM output WHERE id IN (
    SELECT id FROM (
        SELECT id, sum(size) OVER (ORDER BY id) - size AS before FROM (
            SELECT id, length(data) AS size FROM output AS kept
            WHERE run_id = ?1 AND EXISTS (
                SELECT 1 FROM attempt
                WHERE attempt.run_id = kept.run_id AND attempt.number = kept.number AND attempt.attempt = kept.attempt
            )
            ORDER BY id LIMIT 10000
        )
    ) WHERE before < ?2
)

-- Deposits.

-- name: last_deposit
SELECT max(number) FROM (
    SELECT max(number) AS number FROM deposit_piece UNION ALL SELECT max(number) FROM deposit
) AS numbers
-- name: add_deposit_piece
INSERT INTO deposit_piece (number, start, data) VALUES (?, ?, ?) ON CONFLICT DO NOTHING
-- name: claim_deposit
INSERT INTO deposit (run_id, revision, number) VALUES (?, ?, ?)
-- name: deposits
SELECT DISTINCT number FROM deposit_piece WHERE number NOT IN (SELECT number FROM deposit) ORDER BY number
-- name: is_deposit
SELECT 1 FROM deposit_piece WHERE number = :number AND :number NOT IN (SELECT number FROM deposit) LIMIT 1
-- name: discard_deposit
DELETE FROM deposit_piece WHERE (number, start) IN (
    SELECT number, start FROM deposit_piece WHERE number = :number AND number NOT IN (SELECT number FROM deposit) ORDER BY number, start LIMIT min(:limit, 4)
)

-- Reading. A run that is being deleted is not known.

-- name: document
-- It stands in one of the two.
SELECT start, data FROM document WHERE run_id = :run_id AND revision = :revision
UNION ALL SELECT start, data FROM deposit_piece
WHERE number = (SELECT number FROM deposit WHERE run_id = :run_id AND revision = :revision)
ORDER BY start
-- name: has_document
SELECT 1 FROM run WHERE run_id = :run_id AND NOT deleting
AND (:revision = 0 OR EXISTS (SELECT 1 FROM growth WHERE run_id = :run_id AND revision = :revision))
-- name: run
SELECT run_id, request_id, tags, pool, state, submit_time, start_time, stop_time, killing, task_states,
(SELECT count(*) FROM growth WHERE growth.run_id = run.run_id), length(stopped_list) / 4, ran_seconds, running_time,
submit_pool, stopped_list
FROM run WHERE run_id = :run_id AND NOT deleting
-- name: runs
SELECT run_id, request_id, tags, pool, state, submit_time, start_time, stop_time, killing, task_states,
(SELECT count(*) FROM growth WHERE growth.run_id = run.run_id), length(stopped_list) / 4, ran_seconds, running_time
FROM run WHERE run_id < :before AND NOT deleting ORDER BY run_id DESC LIMIT :limit
-- name: wanted_runs
SELECT run_id, request_id, tags, pool, state, submit_time, start_time, stop_time, killing, task_states,
(SELECT count(*) FROM growth WHERE growth.run_id = run.run_id), length(stopped_list) / 4, ran_seconds, running_time
FROM run WHERE run_id < :before AND run_id >= :lowest AND NOT deleting
AND state NOT IN (SELECT value FROM json_each(:unwanted)) AND submit_time >= :since AND submit_time < :until
AND (:ended_before = 9e999 OR stop_time < :ended_before)
AND NOT EXISTS (SELECT 1 FROM json_each(:tags) AS tag WHERE instr(run.tags, tag.value) = 0)
ORDER BY run_id DESC LIMIT :limit
-- name: scanned
SELECT min(run_id) FROM (SELECT run_id FROM run WHERE run_id < :before ORDER BY run_id DESC LIMIT :count)
-- name: unfinished
SELECT run_id FROM run WHERE state IN (1, 2) AND NOT deleting ORDER BY run_id
-- name: find_request
SELECT run_id FROM run WHERE request_id = :request_id AND request_id <> ''
-- name: growths
SELECT revision, number, attempt, pool, kept_list FROM growth WHERE run_id = :run_id ORDER BY revision
-- name: assignments
SELECT host_key, assign_time, number_list, attempt_list, life FROM assignment WHERE run_id = :run_id ORDER BY id
-- name: hosts
SELECT host_key, host, host_name FROM host WHERE run_id = :run_id
-- name: task_changes
SELECT state, number_list, attempt_list FROM change WHERE run_id = :run_id AND number_list IS NOT NULL ORDER BY id
-- name: ended
SELECT number, attempt, outcome, state FROM attempt WHERE run_id = :run_id ORDER BY number, attempt
-- name: attempts
SELECT attempt, host, host_name, assign_time, result FROM (
    SELECT * FROM attempt WHERE run_id = :run_id AND number = :number AND attempt < :before
    AND EXISTS (SELECT 1 FROM run WHERE run_id = :run_id AND NOT deleting)
    ORDER BY attempt DESC LIMIT :limit
) JOIN host USING (run_id, host_key) ORDER BY attempt
-- name: results
-- The attempts that are asked for are a JSON array of pairs, task and attempt.
SELECT number, attempt, result FROM json_each(:attempts) AS asked CROSS JOIN attempt
ON run_id = :run_id AND number = json_extract(asked.value, '$[0]') AND attempt = json_extract(asked.value, '$[1]')
WHERE EXISTS (SELECT 1 FROM run WHERE run_id = :run_id AND NOT deleting)
-- name: output
SELECT start, data FROM (
    SELECT start, data, sum(size) OVER (ORDER BY start) - size AS before FROM (
        SELECT start, data, length(data) AS size FROM output
        WHERE run_id = :run_id AND number = :number AND attempt = :attempt AND stream = :stream
        AND start > :offset - 262144 AND start + length(data) > :offset
        AND EXISTS (SELECT 1 FROM run WHERE run_id = :run_id AND NOT deleting)
        ORDER BY start LIMIT 1000
    )
) WHERE before < :limit ORDER BY start
-- name: run_history
-- Of tasks that a person moved, the first three and how many they are; an edit is told by the run's own change.
SELECT time, state, reason, substr(number_list, 1, 12), coalesce(length(number_list), 0) / 4 FROM change
WHERE run_id = :run_id AND (number_list IS NULL OR reason IN ('kill', 'retry', 'mark'))
AND EXISTS (SELECT 1 FROM run WHERE run_id = :run_id AND NOT deleting) ORDER BY id
-- name: task_history
SELECT time, state, reason, number_list FROM change
WHERE run_id = :run_id AND first_number <= :number AND last_number >= :number
AND EXISTS (SELECT 1 FROM run WHERE run_id = :run_id AND NOT deleting) ORDER BY id

-- Deleting, in slices.

-- name: deleting
SELECT run_id FROM run WHERE deleting ORDER BY run_id
-- The runs are a JSON array. Each statement takes rows of one after the other, so that it reads no more than it deletes.
-- name: begin_deleting
UPDATE run SET deleting = 1, request_id = '' WHERE run_id IN (SELECT value FROM json_each(:run_ids)) AND NOT deleting AND :limit > 0
-- name: delete_output
DELETE FROM output WHERE id IN (
    SELECT id FROM (
        SELECT id, sum(size) OVER (ORDER BY id) - size AS before FROM (
            SELECT output.id, length(data) AS size FROM json_each(:run_ids) AS asked CROSS JOIN output ON run_id = asked.value
            LIMIT :limit
        )
    ) WHERE before < 2097152
)
-- name: delete_attempts
DELETE FROM attempt WHERE (run_id, number, attempt) IN (
    SELECT run_id, number, attempt FROM json_each(:run_ids) AS asked CROSS JOIN attempt ON run_id = asked.value LIMIT :limit
)
-- name: delete_assignments
DELETE FROM assignment WHERE id IN (
    SELECT assignment.id FROM json_each(:run_ids) AS asked CROSS JOIN assignment ON run_id = asked.value LIMIT :limit
)
-- name: delete_changes
DELETE FROM change WHERE id IN (
    SELECT change.id FROM json_each(:run_ids) AS asked CROSS JOIN change ON run_id = asked.value LIMIT :limit
)
-- name: delete_documents
DELETE FROM document WHERE rowid IN (
    SELECT place FROM (
        SELECT place, sum(size) OVER (ORDER BY place) - size AS before FROM (
            SELECT document.rowid AS place, length(data) AS size
            FROM json_each(:run_ids) AS asked CROSS JOIN document ON run_id = asked.value LIMIT :limit
        )
    ) WHERE before < 4194304
)
-- name: delete_deposit_pieces
DELETE FROM deposit_piece WHERE (number, start) IN (
    SELECT number, start FROM json_each(:run_ids) AS asked CROSS JOIN deposit ON run_id = asked.value JOIN deposit_piece USING (number)
    LIMIT min(:limit, 4)
)
-- name: delete_deposits
DELETE FROM deposit WHERE (run_id, revision) IN (
    SELECT run_id, revision FROM json_each(:run_ids) AS asked CROSS JOIN deposit ON run_id = asked.value LIMIT :limit
)
-- name: delete_growths
DELETE FROM growth WHERE (run_id, revision) IN (
    SELECT run_id, revision FROM json_each(:run_ids) AS asked CROSS JOIN growth ON run_id = asked.value LIMIT :limit
)
-- name: delete_hosts
DELETE FROM host WHERE (run_id, host_key) IN (
    SELECT run_id, host_key FROM json_each(:run_ids) AS asked CROSS JOIN host ON run_id = asked.value LIMIT :limit
)
-- name: delete_run
DELETE FROM run WHERE run_id IN (SELECT value FROM json_each(:run_ids)) AND deleting AND :limit > 0
