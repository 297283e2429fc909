"""The settings of a Slurm pool, and which of them contradict each other.

The server checks a pool's table against `SlurmSettings`; the executors of both modes read it. Nothing here asks Slurm.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from daggyr_server.executors.context import pattern_faults

Seconds = Annotated[float, Meta(ge=0.05, le=86_400)]

# Slurm expands % in the names of output files (sbatch(1), filename pattern), and a backslash switches that off.
_UNFIT_FOR_PATHS = re.compile(r"[%\\\x00-\x1f\x7f]")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
# The executor itself sets these for each job; another value would break what it promises.
_OWN_OPTIONS = frozenset(
    (
        "array",
        "job-name",
        "hold",
        "no-requeue",
        "requeue",
        "wait",
        "wrap",
        "parsable",
        "test-only",
        "output",
        "error",
        "input",
        "open-mode",
        "chdir",
        "export",
        "export-file",
        "ntasks",
        "nodes",
        "cpus-per-task",
        "mem",
        "mem-per-cpu",
        "gres",
        "licenses",
        "time",
        "partition",
        "account",
        "qos",
        "uid",
        "gid",
        "clusters",
        "help",
        "usage",
        "version",
    )
)


class SlurmSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One Slurm pool. Times are in seconds, except `time_limit`, which is in Slurm's own form."""

    directory: Path  # shared with the compute nodes under the same path
    mode: Literal["jobs", "pilot"] = "jobs"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time_limit: str | None = None  # MINUTES, [HOURS:]MINUTES:SECONDS or DAYS-HOURS[:MINUTES[:SECONDS]]; of each job
    options: list[str] = []  # further options of sbatch, as --name=value
    pass_environment: list[str] = []  # which of this server's variables tasks get beside the usual: NAME or PREFIX_*
    poll_interval: Seconds = 5.0  # from one status query, for all jobs together, to the next
    settle_seconds: Seconds = 60.0  # how long a result may be on its way after Slurm says that its job has ended
    # job mode
    max_jobs: Annotated[int, Meta(ge=1, le=1_000_000)] = 1_000  # in Slurm at once, each task of an array counted
    resources: dict[str, Annotated[int, Meta(ge=0, le=2**62)]] = {}  # what all jobs together may hold, queued ones too
    # pilot mode
    max_pilots: Annotated[int, Meta(ge=1, le=10_000)] = 4
    pilot_resources: dict[str, Annotated[int, Meta(ge=1, le=2**62)]] = {}  # of each pilot; one core unless given
    idle_seconds: Seconds = 60.0  # after so long, a pilot that has nothing to do is ended
    orphan_seconds: Seconds = 600.0  # after so long, a pilot ends that has seen no sign of a coordinator
    coordinator: str | None = None  # HOST:PORT by which compute nodes reach this server; default: where it listens
    coordinator_ca: Path | None = None  # PEM; trusted by pilots if the server has TLS
    agent_command: list[str] = []  # default: this installation's own, by its path
    # slurmrestd instead of the commands
    base_url: str | None = None  # http://HOST:PORT, or unix:/path/of/its/socket
    api_version: Annotated[str, Meta(pattern=r"^v0\.0\.\d+$")] = "v0.0.38"
    user: str | None = None
    token_file: Path | None = None  # a JWT, read anew for each request
    job: dict[str, Any] = {}  # further properties of a job, in the API's words

    def __post_init__(self) -> None:
        faults = pattern_faults(self.pass_environment)
        if _UNFIT_FOR_PATHS.search(str(self.directory)):
            faults.append("`directory` has a %, a backslash or a control character, which Slurm would not take as it is")
        if self.time_limit is not None and minutes(self.time_limit) is None:
            faults.append('`time_limit` is not in a form of sbatch, for instance "90", "1:30:00" or "2-12"')
        for option in self.options:
            name, equals, _ = option.partition("=")
            if not name.startswith("--") or (not equals and " " in name):
                faults.append(f"write options[{self.options.index(option)}] as --name or --name=value")
            elif name[2:] in _OWN_OPTIONS:
                faults.append(f"`options` holds {name}, which DaggyR itself sets (see its other settings)")
        if self.base_url is None:
            given = [name for name in ("user", "token_file", "job") if getattr(self, name)]
            if given:
                faults.append(f"`{given[0]}` is for slurmrestd: give its `base_url`, or leave it out")
        else:
            if self.options:
                faults.append("`options` are sbatch's; with `base_url`, write them into `job`, in the words of slurmrestd")
            if not self.base_url.startswith(("http://", "https://", "unix:/")):
                faults.append("`base_url` is http://HOST:PORT, https://HOST:PORT or unix:/path/of/a/socket")
            elif not self.base_url.startswith("unix:") and not (self.user and self.token_file):
                faults.append("slurmrestd wants to know who asks: give `user` and `token_file`")
        if self.pilot_resources and not self.pilot_resources.get("cores", 1):
            faults.append("a pilot has at least 1 of `cores`")
        if faults:
            raise ValueError("; ".join(faults))


def minutes(time_limit: str) -> int | None:
    """Return a time limit in whole minutes, rounded up, or None if it is in no form of sbatch(1), --time."""
    found = _TIME.fullmatch(time_limit.strip())
    if not found:
        return None
    days, *rest = (int(part) if part is not None else None for part in found.groups())
    first, second, third = rest
    assert first is not None
    if days is not None:
        seconds = ((days * 24 + first) * 60 + (second or 0)) * 60 + (third or 0)
    elif third is not None:
        seconds = (first * 60 + (second or 0)) * 60 + third
    else:
        seconds = first * 60 + (second or 0)
    return max(1, -(-seconds // 60))
