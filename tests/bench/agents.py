"""Many agents on one coordinator: what 500 sessions with 10,000 attempts in flight cost it, and how it answers meanwhile.

    python tests/bench/agents.py [--agents 500] [--cores 20] [--attempt 5] [--rounds 6] [--tracker memory]

Agents are simulated, several processes of them, with real sessions (simulated_agents.py); each attempt takes `--attempt` seconds.
Printed are the processor time of the coordinator a second of the run, the tasks a second that this is for, and the times of
answers. It asserts nothing but that the run completes.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

from measured import coordinator, expanded
from scale import Asker, watched

PROCESSES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures a coordinator with many agents.")
    parser.add_argument("--agents", type=int, default=500)
    parser.add_argument("--cores", type=int, default=20)
    parser.add_argument("--attempt", type=float, default=5.0, help="seconds")
    parser.add_argument("--rounds", type=int, default=6, help="attempts of each core")
    parser.add_argument("--tracker", default="memory")
    options = parser.parse_args()
    in_flight = options.agents * options.cores
    with coordinator(options.tracker) as server:
        each = -(-options.agents // PROCESSES)
        script = Path(__file__).with_name("simulated_agents.py")
        agents = [
            subprocess.Popen(
                [
                    *(sys.executable, script, server.address, str(first), str(min(each, options.agents - first))),
                    *(str(options.cores), str(options.attempt)),
                ]
            )
            for first in range(0, options.agents, each)
        ]
        try:
            joining = time.perf_counter()
            while len(server.daggyr("agents")) < options.agents:
                if any(process.poll() is not None for process in agents):
                    raise SystemExit("simulated agents have ended")
                time.sleep(0.1)
            print(f"{options.agents} agents joined after {time.perf_counter() - joining:.1f} s")
            asker = Asker(server.address, pause=0.25)  # asking costs the coordinator something as well
            before, started = server.cost, time.perf_counter()
            run = server.daggyr("submit", server.document("run", expanded(in_flight * options.rounds)))
            asker.start()
            watched(server, run)
            seconds, after = time.perf_counter() - started, server.cost
            asker.stopped.set()
            asker.join()
            used = after.cpu_seconds - before.cpu_seconds
            print(f"{in_flight:,} attempts in flight, {in_flight * options.rounds / seconds:,.0f} tasks/s for {seconds:.0f} s")
            print(f"  coordinator: {used / seconds:.2f} cores, {1e6 * used / in_flight / options.rounds:.0f} us a task, ", end="")
            print(f"peak {after.peak_mb:.0f} MB")
            asker.report()
        finally:
            for process in agents:
                process.send_signal(signal.SIGINT)
            for process in agents:
                process.wait()


if __name__ == "__main__":
    main()
