"""Every benchmark of this folder, one after the other, in one go: about ten minutes on a quiet machine.

python tests/bench/all.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMANDS = (
    "machine.py",
    "speed.py",
    "scale.py",
    "agents.py",
    "memory.py",
    "recovery.py",
    "waits.py",
    "many.py",
    "agent_spawn.py",
)


def main() -> None:
    for name in COMMANDS:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, Path(__file__).with_name(name)], check=True)


if __name__ == "__main__":
    main()
