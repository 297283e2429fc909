"""Which rows of a run a slice of its deletion takes away, and in which order: the same for both databases.

A tracker runs the statements of one `Slice` in one transaction, sqlite's in a thread and Postgres' over its connection; so this
only says which statement is next. Pure: nothing here knows a database.
"""

from __future__ import annotations

# The run itself goes last: as long as it is there, `deleting` tells of it.
_STATEMENTS = (
    *("delete_output", "delete_attempts", "delete_assignments", "delete_changes", "delete_documents"),
    *("delete_deposit_pieces", "delete_deposits", "delete_growths", "delete_hosts", "delete_run"),
)
_LEAST_SHARE = 16  # a statement counts as this part of the slice at least, because large rows are few but have their weight


class Slice:
    """About `limit` rows of a run. While `statement` is not None, the caller runs it with `parameters`, and then calls `took`."""

    def __init__(self, run_id: int, limit: int) -> None:
        self.more = False  # whether the run may have more rows; it is known once `statement` is None
        self._run_id = run_id
        self._limit = max(1, limit)
        self._left = self._limit
        self._position = -1

    @property
    def statement(self) -> str | None:
        """The name of the statement that is next."""
        if self.more or self._position == len(_STATEMENTS):
            return None
        return _STATEMENTS[self._position] if self._position >= 0 else "begin_deleting"

    @property
    def parameters(self) -> dict[str, int]:
        return {"run_id": self._run_id, "limit": self._left}

    def took(self, count: int) -> None:
        """The statement took away `count` rows."""
        if count <= 0 or self._position < 0:
            self._position += 1
            return
        self._left -= max(count, self._limit // _LEAST_SHARE)
        self.more = self._left <= 0
