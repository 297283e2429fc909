"""A program that commits to a tracker without end, until a test kills it: `python committing.py ADDRESS FIRST SIZE`.

Commit i assigns SIZE tasks for the i-th time, ends these attempts and keeps a piece of output for each. The program prints the
number of a commit once it is durable, so that the test knows what must be there. With SIZE 0 it only opens the tracker and waits.
"""

from __future__ import annotations

import asyncio
import sys

from tracker_kinds import KINDS
from tracker_records import assigned, ended, kept

from daggyr_server.core.states import Outcome, State


async def main(address: str, first: int, size: int) -> None:
    kind = next(kind for kind in KINDS if address.startswith(kind.name))
    tracker = kind.make(address)
    await tracker.open()
    print("open", flush=True)
    number = first
    while size:
        await tracker.commit(
            [
                assigned(*range(size), attempt=number),
                *(kept(0, b"%d" % number, number=task, attempt=number) for task in range(size)),
                *(ended(Outcome.FAILED, State.QUEUED, number=task, attempt=number) for task in range(size)),
            ]
        )
        print(number, flush=True)
        number += 1
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
