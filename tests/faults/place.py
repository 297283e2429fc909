"""One kind of executor with a farm, and the copies of its tracker: for the tests of what happens when a copy is put back.

A `Place` knows what a kind of pool needs (agents, an sshd, a Slurm cluster), and how what works there stands still and goes on.
A copy of a tracker is taken while its coordinator works, and put back once that has been killed. Nothing here asserts.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from farm import Farm
from support import slurm_cluster
from support.deployment import Deployment, Program, own_address, words
from support.postgres_server import PostgresServer, programs
from support.sshd_server import SshdServer, sshd_server
from support.waiting import is_gone, until


@dataclass
class Place:
    """See above. `kind` is agents, local, ssh, slurm jobs or slurm pilots; `cores` is how many tasks can run at once."""

    kind: str
    farm: Farm
    cores: int
    host: SshdServer | None = None
    cluster: slurm_cluster.SlurmCluster | None = None
    agents: list[Program] = field(default_factory=list)
    _stopped: list[psutil.Process] = field(default_factory=list)

    def start(self) -> None:
        """Start a coordinator, and agents where the pool is of agents that somebody starts."""
        self.farm.start()
        if self.kind == "agents" and not self.agents:
            self.agents = self.farm.agents("one", cores=self.cores)

    def stop(self) -> None:
        """Have what carries tasks out stand still: the agents' processes, or the way to the host."""
        if self.host is not None:
            self.host.stop()
        elif self.kind == "slurm jobs":
            assert self.cluster is not None
            self.cluster.stop_controller()
        else:
            self._stopped = self.agent_processes()
            for process in self._stopped:
                process.suspend()

    def go_on(self) -> None:
        """Have what stood still go on."""
        if self.host is not None:
            self.host.start()
        elif self.kind == "slurm jobs":
            assert self.cluster is not None
            self.cluster.start_controller()
        for process in self._stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        self._stopped.clear()

    def end(self) -> None:
        """Kill the agents, which leave what they run behind."""
        for process in self.agent_processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
            until(lambda process=process: is_gone(process.pid), "the end of an agent")  # type: ignore[misc]

    def start_again(self) -> None:
        """Start what `end` has killed, with the same state folder."""
        if self.kind == "agents":
            self.agents = self.farm.agents("one", cores=self.cores)

    def agent_processes(self) -> list[psutil.Process]:
        """The agents that work for this place."""
        name = {"agents": "one", "local": "local", "slurm pilots": "pilot-"}.get(self.kind)
        if name is None:
            return []
        found = []
        for process in psutil.process_iter():
            command = words(process)
            if "--name" in command and command[command.index("--name") + 1].startswith(name) and "daggyr" in " ".join(command):
                with contextlib.suppress(psutil.Error):
                    if str(self.farm.deployment.folder) in json.dumps(process.environ()):
                        found.append(process)
        return found


@contextlib.contextmanager
def place(kind: str, deployment: Deployment, tracker: str) -> Iterator[Place]:
    """A place of this kind, without a coordinator so far."""
    work = deployment.work
    with contextlib.ExitStack() as stack:
        host = cluster = None
        cores = 4
        if kind == "agents":
            pool: dict[str, Any] = {"executor": "agent"}
        elif kind == "local":
            pool = {"executor": "local", "workers": 4}
        elif kind == "ssh":
            host = stack.enter_context(sshd_server({"HOME": str(work)}))
            target = host.target(resources={"cores": 4})
            target["private_key_file"] = str(target["private_key_file"])
            pool = {"executor": "ssh", "known_hosts": str(host.known_hosts), "directory": f"{work}/ssh", "targets": [target]}
            pool["working_directory"] = str(work)
        else:
            cores = 2
            cluster = stack.enter_context(_cluster(deployment))
            pool = {"executor": "slurm", "directory": str(work), "poll_interval": 0.2}
            if kind == "slurm pilots":
                pool |= {"mode": "pilot", "max_pilots": 1, "pilot_resources": {"cores": 2}}
        table = "".join(f"{name} = {_toml(value)}\n" for name, value in pool.items())
        # An address that the next coordinator has too, on a port where pilots find it.
        farm = Farm(deployment, tracker, pools=f"[pools.farm]\nkill_grace = 1\n{table}")
        if kind == "slurm pilots":
            farm.listen = own_address()
        made = Place(kind, farm, cores, host, cluster)
        try:
            yield made
        finally:
            farm.kill()  # a coordinator would submit new pilots
            for process in made._stopped:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()


@contextlib.contextmanager
def _cluster(deployment: Deployment) -> Iterator[slurm_cluster.SlurmCluster]:
    found = slurm_cluster.running()
    deployment.environment["SLURM_CONF"] = str(found.configuration)
    try:
        yield found
    finally:
        for job, _, _ in found.unfinished():
            found.ask("scancel", job)
        until(lambda: not found.unfinished(), "the end of all jobs")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list) else json.dumps(value)


# -- copies of a tracker ----------------------------------------------------------------------------------------------


def copy_of(tracker: str, request: pytest.FixtureRequest, folder: Path) -> Callable[[], None]:
    """Copy a tracker that is in use, as an administrator would. Returns what puts the copy back, once nobody uses the tracker."""
    if tracker.startswith("sqlite:"):
        path, copy = Path(tracker.removeprefix("sqlite:")), folder / "copy.db"
        with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            target.execute("UPDATE tracker SET standing = 0")  # else it says that it is a copy of one in use, and is refused
            target.commit()
        copy.chmod(0o600)

        def put_back() -> None:
            for ending in ("", "-wal", "-shm", "-lock"):  # without the lock's file, nothing here knows what the tracker held
                path.with_name(path.name + ending).unlink(missing_ok=True)
            copy.replace(path)

        return put_back
    server: PostgresServer = request.getfixturevalue("postgres")
    name = tracker.partition("@/")[2].partition("?")[0]
    where = programs()
    assert where is not None
    dump = folder / "copy.dump"
    subprocess.run([where / "pg_dump", "--format=custom", f"--file={dump}", server.url(name)], check=True)

    def load() -> None:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)", f"CREATE DATABASE {name}")
        subprocess.run([where / "pg_restore", "--no-owner", f"--dbname={server.url(name)}", dump], check=True)

    return load
