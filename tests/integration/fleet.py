"""Many real agents on one host: a process each, forked from one that has loaded the program, which saves time and memory.

    python fleet.py COUNT FOLDER [ARGUMENT...]

starts agents `agent-0`, `agent-1`... with these arguments of `daggyr-agent`, ends them all on SIGTERM, and exits with how many
of them did not end with 0. Forking is safe because nothing of gRPC has been started when it is done.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from daggyr_agent.main import main as agent


def main(count: int, folder: str, arguments: Sequence[str]) -> int:
    gc.collect()
    gc.freeze()
    pids: list[int] = []
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            _become_agent(number, folder, arguments)
        pids.append(pid)
    signal.sigwait({signal.SIGTERM})
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    return sum(os.waitpid(pid, 0)[1] != 0 for pid in pids)


def _become_agent(number: int, folder: str, arguments: Sequence[str]) -> NoReturn:
    code = 70
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        sys.argv = ["daggyr-agent", "--name", f"agent-{number}", "--state-dir", f"{folder}/agent-{number}", *arguments]
        agent()
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else 1
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
