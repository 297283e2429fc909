"""Which rows of some runs a slice of their deletion takes away, and in which order: the same for both databases.

A statement takes rows of all of the runs, because thousands of small runs would cost as many times all statements. A tracker runs
the statements of one `Slice` in one transaction, sqlite's in a thread and Postgres' over its connection; so this
only says which statement is next. Pure: nothing here knows a database.
"""

from __future__ import annotations

from collections.abc import Sequence

# The runs themselves go last: as long as they are there, `deleting` tells of them.
_STATEMENTS = (
    *("delete_output", "delete_attempts", "delete_assignments", "delete_changes", "delete_documents"),
    *("delete_deposit_pieces", "delete_deposits", "delete_growths", "delete_hosts", "delete_run"),
)
_LEAST_SHARE = 16  # a statement counts as this part of the slice at least, because large rows are few but have their weight


class Slice:
    """About `limit` rows of some runs.

    While `statement` is not None, the caller runs it with `run_ids` and `limit`, and then calls `took`.
    """

    def __init__(self, run_ids: Sequence[int], limit: int) -> None:
        self.more = False  # whether the runs may have more rows; it is known once `statement` is None
        self.run_ids = list(run_ids)
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
    def limit(self) -> int:
        """How many rows that statement may take."""
        return self._left

    def took(self, count: int) -> None:
        """The statement took away `count` rows."""
        if count <= 0 or self._position < 0:
            self._position += 1
            return
        self._left -= max(count, self._limit // _LEAST_SHARE)
        self.more = self._left <= 0
