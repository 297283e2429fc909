"""The program `daggyr-agent`: arguments in, exit code out.

Exit codes: 0 after it was stopped, drained or its lifeline was cut; 2 for bad usage, or when the coordinator refused it at
its first start or another agent of the same id took its place. Logs and errors go to stderr, errors as one line.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys

from daggyr.checked import ConfigurationError
from daggyr.daemon import log_to_stderr
from daggyr.standard_streams import claim, say

from .config import Config, UsageError, read_config
from .descriptors import keep_from_children
from .state import StateError, StateFolder

_GC_THRESHOLD = 50_000  # Attempts make no reference cycles, and the default looks for some every few hundred objects.
_SWITCH_SECONDS = 0.0005  # how long a thread whose process has ended may wait for the interpreter; the default is ten times that


def main() -> None:
    """Run the agent with the command line's arguments; leaves by SystemExit."""
    claim()  # A standard stream that was closed must not become one of the agent's files, because children have theirs there.
    try:
        keep_from_children()
        config = read_config(sys.argv[1:], os.environ)
        log_to_stderr("daggyr-agent", config.log_level)
        # gRPC logs faults of the network with a traceback, and the agent names them itself.
        logging.getLogger("grpc").setLevel(logging.CRITICAL)
        # Only now: whoever asked for help, or chose an option that there is not, has not waited for what this loads.
        from .connection import RefusedError

        state = StateFolder(config.state_dir)
    except (ConfigurationError, UsageError, StateError) as error:
        sys.exit(_fault(error))
    except OSError as error:
        sys.exit(_fault(_unfit(error)))
    try:
        asyncio.run(_run(config, state))
    except RefusedError as error:
        sys.exit(_fault(error))
    except OSError as error:
        sys.exit(_fault(_unfit(error)))
    finally:
        state.close()
    sys.exit(0)


async def _run(config: Config, state: StateFolder) -> None:
    sys.setswitchinterval(_SWITCH_SECONDS)
    from .agent import Agent

    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    await Agent(config, state, os.environb).run()


def _unfit(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return f"this system cannot run an agent: {error.strerror or error}{where}"


def _fault(error: object) -> int:
    say(" ".join(line.strip() for line in f"daggyr-agent: {error}".splitlines()))
    return 2
