"""Tasks whose processes hide from the agent, and where to find them again; for tests of how attempts, and agents, end."""

from __future__ import annotations

from pathlib import Path

from agent_program import eventually

# A process that leaves its process group and its session, and lets its parents die, as daemons do. It writes its pid into
# a file once it has left. %s is what it does first.
LEAVE = """
import os, time, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        %s
        with open("left.new", "w") as file: file.write(str(os.getpid()))
        os.rename("left.new", "left")
        time.sleep(600)
    os._exit(0)
os.wait()
while not os.path.exists("left"): time.sleep(0.001)
"""
# It goes on as another program, with an empty environment.
SCRUB = """os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", '''import os, time
with open("left.new", "w") as file: file.write(str(os.getpid()))
os.rename("left.new", "left")
time.sleep(600)'''], {})"""


def runs(pid: int) -> bool:
    """Whether the process is there and no zombie (proc_pid_stat(5)): not every init(1) reaps."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def left(folder: Path) -> int:
    """The pid of the process that left, once it has; `folder` is where its task ran."""
    await eventually((folder / "left").exists, "a process has left")
    return int((folder / "left").read_text())
