"""A Slurm cluster of the tests' own on this host: munged, slurmctld, slurmd and slurmrestd, from Debian's packages.

`running()` starts it at the first call of a session and gives the same to all; tests/conftest.py ends it. Its files are in a
temporary folder, its ports are its own on loopback, it needs no systemd, and a database only for `account`. It has one node, of
which the jobs of tests get CORES cores. Where control groups (version 1) can be made, Slurm uses them, so that it knows of memory
that is used up, and of processes that went away; `has_cgroups` says so.

It runs as root only: slurmd starts jobs as their users, and munged has to be another user than those who ask it.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from daggyr_server.executors.slurm.client import ENDED_STATES
from support import slurm_accounting
from support.waiting import DEADLINE

GROUP = "slurm"  # the xdist_group of tests that use a cluster: one worker has them
COPIES_GROUP = (
    "slurm-copies"  # of those about copies of trackers, which wait for long: another worker may have them and a cluster
)
CORES = 2
MEMORY_MB = 1_000
_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_PROGRAMS = (
    "munge",
    "munged",
    "slurmctld",
    "slurmd",
    "slurmrestd",
    "sbatch",
    "squeue",
    "scancel",
    "scontrol",
    *slurm_accounting.PROGRAMS,
)

_CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
AuthAltTypes=auth/jwt
AuthAltParameters=jwt_key={folder}/jwt.key
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmdParameters=config_overrides
ProctrackType=proctrack/{track}
TaskPlugin=task/{task}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=200
JobAcctGatherType=jobacct_gather/linux
MpiDefault=none
ReturnToService=2
# What follows never matters, whatever else stands still: who is asked to end does so, and nobody is given up before.
KillWait=60
FirstJobId={first_job}
MinJobAge=86400
BatchStartTimeout=600
UnkillableStepTimeout=1200
SlurmdTimeout=3600
TCPTimeout=60
# A controller that is not there is asked for this long by each command. One that is late is asked again by whoever asked it.
MessageTimeout=3
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
GresTypes=widget,gpu
# With an epilog, a node tells the controller each time that a job has left it, and the controller starts the next one at once.
# Without one, it often learns of the end in a way after which it starts nothing before its next round, up to a second later.
Epilog=/bin/true
# Jobs start about three times a second on each core; by default, it takes a second and more.
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,default_queue_depth=1000
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 CPUs={all_cores} RealMemory={memory} Gres={gres} State=UNKNOWN
PartitionName=main Nodes={node} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 MaxCPUsPerNode={cores}
# For a job that runs beside those of other tests; see `SlurmCluster.jobs`.
PartitionName=aside Nodes={node} MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=OFF MaxCPUsPerNode=1
PartitionName=urgent Nodes={node} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF MaxCPUsPerNode={cores}
"""
_CGROUPS = """
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
ConstrainRAMSpace=yes
"""


class SlurmCluster:
    """Life: `start`, then any calls, `close`. The controller may be stopped and started in between."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="daggyr-slurm-"))  # sockets have to have short paths
        self.folder.chmod(0o755)
        # Control groups have the node's name: another cluster on this host, of another checkout, has another, and leaves these.
        self.node = f"node{secrets.randbelow(10**9)}"
        self.has_cgroups = all(_can_make(Path("/sys/fs/cgroup") / name) for name in ("freezer", "memory"))
        self.configuration = self.folder / "slurm.conf"
        path = f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}"
        self.environment = {**os.environ, "PATH": path, "SLURM_CONF": str(self.configuration)}
        self.rest_url = ""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: list[socket.socket] = []

    def start(self) -> None:
        """Returns when the cluster takes jobs."""
        munge = self.folder / "munge"
        munge.mkdir(mode=0o755)
        (self.folder / "state").mkdir()
        (self.folder / "spool").mkdir()
        for path in (munge / "key", self.folder / "jwt.key"):
            path.write_bytes(secrets.token_bytes(64))
            path.chmod(0o600)
        user = pwd.getpwnam("munge")
        for path in (munge, munge / "key"):
            os.chown(path, user.pw_uid, user.pw_gid)
        self._ports = [_reserved_port() for _ in range(3)]
        controller_port, node_port, rest_port = (int(each.getsockname()[1]) for each in self._ports)
        self.configuration.write_text(
            _CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0],
                node=self.node,
                folder=self.folder,
                controller_port=controller_port,
                node_port=node_port,
                first_job=1 + 1_000 * secrets.randbelow(60_000),
                track="cgroup" if self.has_cgroups else "linuxproc",
                task="cgroup" if self.has_cgroups else "none",
                cores=CORES,
                all_cores=CORES + 1,
                gres=f"widget:{CORES},gpu:{CORES}",
                memory=MEMORY_MB,
            )
        )
        (self.folder / "cgroup.conf").write_text(_CGROUPS if self.has_cgroups else "")
        (self.folder / "gres.conf").write_text(
            f"NodeName={self.node} Name=widget Count={CORES}\n"
            f"NodeName={self.node} Name=gpu File=/dev/null\nNodeName={self.node} Name=gpu File=/dev/zero\n"  # devices, as any GPU
        )
        self.run(
            "munged",
            *_as("munge"),
            "munged",
            "--foreground",
            *(f"--{name}-file={munge / name}" for name in ("key", "pid", "seed", "log")),
            f"--socket={munge / 'socket'}",
        )
        self.until(lambda: self.ask("munge", "--no-input", f"--socket={munge / 'socket'}"), "munged")
        self.start_controller(clean=True)
        self.run("slurmd", "slurmd", "-D", "-N", self.node)
        self.until(lambda: self.ask("sinfo", "--noheader", "--format=%T").split() == ["idle"], "slurmd")
        self.rest_url = f"http://127.0.0.1:{rest_port}"
        # It refuses to be root, and needs no rights: each request brings a token.
        self.run(
            "slurmrestd",
            *_as("nobody"),
            *("slurmrestd", "-a", "rest_auth/jwt", "-s", "openapi/v0.0.38", "-f", str(self.configuration)),
            f"127.0.0.1:{rest_port}",
            SLURM_JWT="daemon",
        )
        self.until(lambda: _answers(rest_port), "slurmrestd")

    def start_controller(self, *, clean: bool = False) -> None:
        """`clean`: it has forgotten all jobs. Returns when it answers."""
        self.run("slurmctld", "slurmctld", "-D", *(["-c"] if clean else []))
        self.until(lambda: "UP" in self.ask("scontrol", "ping"), "slurmctld")
        if "slurmd" in self._processes:
            # The node tells of itself at once. The controller would ask for it after some seconds, and start nothing before.
            self._processes["slurmd"].send_signal(signal.SIGHUP)

    def account(self) -> None:
        """Have accounting with limits from now on; see slurm_accounting.py."""
        if "slurmdbd" in self._processes:
            return
        self._ports.append(_reserved_port())
        slurm_accounting.start(self, int(self._ports[-1].getsockname()[1]))
        self.stop_controller()
        self.start_controller()
        self.until(lambda: "main" in self.ask("scontrol", "show", "assoc_mgr", "flags=assoc"), "the account")

    def mend(self) -> None:
        """Start the controller if a test that failed left it stopped."""
        if "slurmctld" not in self._processes:
            self.start_controller()

    def stop_controller(self) -> None:
        """End it in order: it keeps its state."""
        self._end("slurmctld")

    def token(self) -> str:
        """A token for slurmrestd."""
        return self.ask("scontrol", "token", "username=root", "lifespan=86400").strip().partition("=")[2]

    def expired_token(self) -> str:
        """A token of the right key that was good for a moment of the year 2020 (RFC 7519)."""
        claims = {"iat": 1577836800, "exp": 1577836860, "sun": "root"}
        parts = [_encoded(json.dumps(each).encode()) for each in ({"alg": "HS256", "typ": "JWT"}, claims)]
        signature = hmac.digest((self.folder / "jwt.key").read_bytes(), ".".join(parts).encode(), "sha256")
        return ".".join([*parts, _encoded(signature)])

    def ask(self, *command: str) -> str:
        """Standard output of one of Slurm's commands, whatever it exits with; asked again if nobody answers it for now."""
        deadline = time.monotonic() + DEADLINE
        while True:
            ended = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=DEADLINE, check=False)
            # sbatch may have been heard.
            if "timed out" not in ended.stderr or command[0] == "sbatch" or time.monotonic() > deadline:
                return ended.stdout

    def jobs(self, prefix: str = "") -> list[tuple[str, str, str]]:
        """Id, name and state of all jobs that Slurm remembers, but for those aside.

        The partition `aside` has a core of its own. It is for a test that waits long, while others count jobs.
        """
        lines = self.ask(
            *("squeue", "--noheader", "--array", "--states=all", "--partition=main,urgent", "--format=%i %j %T")
        ).splitlines()
        return [(words[0], words[1], words[2]) for words in map(str.split, lines) if words[1].startswith(prefix)]

    def unfinished(self, prefix: str = "") -> list[tuple[str, str, str]]:
        return [job for job in self.jobs(prefix) if job[2] not in ENDED_STATES]

    def close(self) -> None:
        """End all jobs and services, by pid, and remove the files."""
        if "slurmd" in self._processes:
            self.mend()
            self.ask("scancel", "--user=root")
            self.until(lambda: not self.ask("squeue", "--noheader"), "the end of all jobs")
        self.abandon()

    def abandon(self) -> None:
        """End the services, whatever they do."""
        for name in reversed(list(self._processes)):
            self._end(name)
        for each in self._ports:
            each.close()
        shutil.rmtree(self.folder)
        if self.has_cgroups:  # slurmd leaves its own, empty
            for own in Path("/sys/fs/cgroup").glob(f"*/slurm_{self.node}"):
                for group in [*sorted((path for path in own.rglob("*") if path.is_dir()), reverse=True), own]:
                    with contextlib.suppress(OSError):
                        group.rmdir()

    def logs(self) -> str:
        return "".join(f"\n--- {path.name}\n{path.read_text(errors='replace')[-4000:]}" for path in self.folder.glob("*.log"))

    def run(self, name: str, *command: str, **variables: str) -> None:
        # setpriv, so that it ends with this process, whatever becomes of that: PR_SET_PDEATHSIG in prctl(2).
        with open(self.folder / f"{name}.log", "ab") as log:
            self._processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.environment, **variables},
                cwd=self.folder,
            )

    def _end(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def until(self, condition: object, what: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():  # type: ignore[operator]
            ended = [name for name, process in self._processes.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"this never came: {what}; ended: {ended}{self.logs()}")
            time.sleep(0.05)


_running: SlurmCluster | None = None


def running() -> SlurmCluster:
    """The session's cluster. Skips the test without the packages or without root; in CI that fails.

    Where pytest-xdist has several workers, only those with the groups GROUP and COPIES_GROUP may call it: a cluster is work.
    """
    global _running
    test = os.environ.get("PYTEST_CURRENT_TEST", "")
    if "PYTEST_XDIST_WORKER" in os.environ and not test.partition(" (")[0].endswith((f"@{GROUP}", f"@{COPIES_GROUP}")):
        pytest.fail(f"{test} uses the Slurm cluster and is not marked with xdist_group({GROUP!r})")
    if _running is None:
        missing = [program for program in _PROGRAMS if shutil.which(program, path=_SYSTEM_PATH) is None]
        reason = ""
        if missing:
            packages = "slurm-wlm slurm-wlm-jwt-plugin slurmrestd munge slurmdbd mariadb-server"
            reason = f"Slurm is not installed: apt-get install {packages} ({', '.join(missing)})"
        elif os.getuid() != 0:
            reason = "a Slurm cluster is only started by root"
        if reason and os.environ.get("CI"):
            pytest.fail(reason)
        if reason:
            pytest.skip(reason)
        cluster = SlurmCluster()
        try:
            cluster.start()
        except BaseException:
            cluster.abandon()
            raise
        _running = cluster
    return _running


def end() -> None:
    """End the session's cluster, if one was started."""
    global _running
    cluster, _running = _running, None
    if cluster is not None:
        cluster.close()


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _as(user: str) -> tuple[str, ...]:
    found = pwd.getpwnam(user)
    return ("--reuid", str(found.pw_uid), "--regid", str(found.pw_gid), "--clear-groups")


def _reserved_port() -> socket.socket:
    """A port on loopback that is nobody else's until this is closed: who does not listen leaves it to who does (SO_REUSEADDR)."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _can_make(controller: Path) -> bool:
    """Whether control groups can be made below a controller's folder."""
    probe = controller / f"daggyr-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return False
    return True
