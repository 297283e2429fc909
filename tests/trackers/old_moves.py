"""What versions before 0.2 wrote of a run that ended in the evening and was queued again in the morning: it is RUNNING again."""

from __future__ import annotations

OLD_MOVE = "INSERT INTO change (run_id, time, state, reason) VALUES (?, ?, ?, ?)"
OLD_MOVES = [
    *((1, 100.0, 2, ""), (1, 103.0, 2, "edit"), (1, 105.0, 4, "")),
    *((1, 110.0, 1, ""), (1, 111.0, 2, ""), (1, 112.0, 2, "kill"), (1, 114.0, 5, "")),
    *((1, 39_999.0, 1, ""), (1, 40_000.0, 2, "")),
]
