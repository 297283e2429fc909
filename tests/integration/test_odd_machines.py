"""Machines that are not ours: users without a home, a /proc of which parts are missing, no folder for temporary files, no IPv4.

The conditions are real ones: namespaces made by unshare(1), with files mounted over. Where the system allows none, a test is
skipped.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from pathlib import Path

import pytest
from support.deployment import BIN, Deployment
from support.own_network import allowed, own_network
from support.waiting import DEADLINE, until


class Machine:
    """Runs commands below `before` with few variables and no terminal; no command shows a traceback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = folder / "spec.json"
        self.write("echo here")

    def write(self, script: str) -> None:
        self.spec.write_text(json.dumps({"tasks": {"only": {"details": {"command": ["sh", "-c", script]}}}}))

    def run(self, before: list[str], *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            [*before, *command],
            cwd=self.folder,
            env={"PATH": f"{BIN}:/usr/bin:/bin", **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def nobody() -> list[str]:
    """A user whose number nobody has, and who has no HOME."""
    return allowed(["unshare", "--user", "--map-user=54321"])


def mounted(*mounts: str) -> list[str]:
    """A mount namespace of one's own; `mounts` are arguments of mount(8)."""
    users = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    script = "".join(f"mount {each} && " for each in mounts) + 'exec "$@"'
    return allowed(["unshare", *users, "--mount", "sh", "-c", script, "sh"])


def test_a_user_without_a_home_runs_and_is_told_what_else_needs_one(machine: Machine) -> None:
    before = nobody()
    ended = machine.run(before, "daggyr", "run", str(machine.spec))
    assert ended.returncode == 0, ended.stderr
    for command in (
        ("daggyr", "--server", "127.0.0.1:1", "runs"),
        ("daggyr-server", "--listen", "127.0.0.1:0"),
        ("daggyr-agent", "--coordinator", "127.0.0.1:1"),
    ):
        ended = machine.run(before, *command)
        assert ended.returncode == 2
        assert "user 54321 has no home folder" in ended.stderr
        assert "set HOME, or XDG_STATE_HOME" in ended.stderr
    ended = machine.run(before, "daggyr-agent", "--coordinator", "127.0.0.1:1", "--state-dir", "~/agent")
    assert (ended.returncode, "write the whole path" in ended.stderr) == (2, True)


@pytest.mark.parametrize(
    "missing",
    [("meminfo",), ("meminfo", "stat", "loadavg", "uptime", "cpuinfo", "sys/kernel/random/boot_id")],
    ids=["meminfo", "much"],
)
def test_a_proc_of_which_parts_are_missing(machine: Machine, missing: tuple[str, ...]) -> None:
    before = mounted(*(f"--bind /dev/null /proc/{name}" for name in missing))
    ended = machine.run(before, "daggyr", "run", str(machine.spec), HOME=str(machine.folder))
    assert ended.returncode == 0, ended.stderr


def test_an_agent_without_proc_says_so(machine: Machine) -> None:
    before = mounted("-t tmpfs none /proc")
    ended = machine.run(before, "daggyr-agent", "--coordinator", "unix:/nowhere", "--state-dir", str(machine.folder / "state"))
    assert (ended.returncode, "/proc is not mounted" in ended.stderr) == (2, True)


def test_no_folder_for_temporary_files(machine: Machine) -> None:
    """Every folder that might do is read-only, also the one where the command is started."""
    places = [place for place in ("/tmp", "/var/tmp", "/usr/tmp") if Path(place).exists()]
    # Each is bound to itself and stays where it is: this checkout may lie in one of them.
    read_only = [step for place in places for step in (f"--bind {place} {place}", f"-o remount,ro,bind {place}")]
    before = mounted(f"--bind {machine.folder} /mnt", "-o remount,ro,bind /mnt", *read_only)
    before = [*before, "sh", "-c", 'cd /mnt && exec "$@"', "sh"]
    state = {"HOME": "/mnt", "TMPDIR": "/nowhere"}
    for command in (("daggyr", "run", "spec.json"), ("daggyr-server", "--listen", "unix:/mnt/s/s")):
        ended = machine.run(before, *command, **state)
        assert ended.returncode == 2
        assert "/nowhere (set TMPDIR to a folder of yours" in ended.stderr
    ended = machine.run(before, "daggyr-agent", "--coordinator", "unix:/mnt/none", **state)
    assert (ended.returncode, "Read-only file system" in ended.stderr) == (2, True)


def test_the_other_loopback_address_is_advised_where_one_is_missing(machine: Machine) -> None:
    ended = machine.run(own_network(ipv4=False), "daggyr-server", HOME=str(machine.folder))
    assert ended.returncode == 2
    assert "no such loopback address: take its other one, [::1]:2503" in ended.stderr


@pytest.mark.parametrize(("written", "meant"), [("::1", "[::1]:2503"), ("::1:77", "[::1]:77"), ("fe80::1", "[fe80::1]:2503")])
def test_an_ipv6_address_without_brackets_is_advised_with_them(machine: Machine, written: str, meant: str) -> None:
    ended = machine.run([], "daggyr-server", "--listen", written)
    assert (ended.returncode, f"write an IPv6 host in brackets, {meant}" in ended.stderr) == (2, True)


def test_tasks_are_given_three_descriptors_whatever_the_agent_inherited(deployment: Deployment, tmp_path: Path) -> None:
    """The agent's starter holds a lock and lets it go: what a task left running must not hold it."""
    deployment.start_server(config='[pools.farm]\nexecutor = "agent"\n')
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    log = deployment.folder / "by-hand.log"
    with log.open("wb") as stderr:
        agent = subprocess.Popen(
            [BIN / "daggyr-agent", "--coordinator", deployment.address, "--pool", "farm", "--name", "hand"],
            cwd=deployment.work,
            env=deployment.environment,
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=(lock,),
        )
    try:
        os.close(lock)
        until(lambda: "connected to " in log.read_text(), "the agent")
        script = 'for each in /proc/$$/fd/*; do printf "%s " "${each##*/}"; done'
        ended = deployment.complete({"only": {"details": {"command": ["sh", "-c", script]}}})
        shown = deployment.json("task", str(ended["run_id"]), "only")["attempts"][0]["stdout"].split()
        # A shell may have opened one of its own for the listing; the lock is none of them.
        assert str(lock) not in shown
        assert shown[:3] == ["0", "1", "2"]
    finally:
        agent.terminate()
        agent.wait(DEADLINE)
