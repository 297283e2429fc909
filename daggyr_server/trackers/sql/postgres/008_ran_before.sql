-- For how long the runs of versions before 0.2 were RUNNING, out of their history, because the run itself tells only when it began
-- first and when it ended last. A night after which it was queued again would count.

UPDATE daggyr.run SET
    ran_seconds = coalesce((
        SELECT sum(greatest(0.0, until - time)) FROM (
            SELECT time, state, lead(time) OVER (ORDER BY id) AS until FROM daggyr.change
            WHERE change.run_id = run.run_id AND number_list IS NULL AND reason = ''
        ) AS moves WHERE state = 2 AND until IS NOT NULL
    ), stop_time - start_time, 0.0),
    running_time = CASE state WHEN 2 THEN coalesce((
        SELECT time FROM daggyr.change WHERE change.run_id = run.run_id AND number_list IS NULL AND reason = '' AND change.state = 2
        ORDER BY id DESC LIMIT 1
    ), start_time) END
WHERE ran_seconds IS NULL AND start_time IS NOT NULL;
