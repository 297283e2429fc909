"""A submission to Slurm as files: what was to be started as which attempt, and what the jobs themselves wrote about it.

    DIRECTORY/TRACKER_ID/SUBMISSION/       mode 0700
        manifest        index -> attempt, and the job's id once it is known; JSON
        tasks, N.in     what the job script is to start (script.py); mode 0600
        N.run ...       what it tells (job.sh)

**No attempt is submitted twice, in no window.** The driver commits that attempts were assigned before the executor hears of them;
the executor writes the manifest, and makes it durable, before sbatch; the job is submitted held, under the submission's id as
its name; its id is made durable in the manifest before it is released. So, wherever a coordinator is killed:

    before the manifest      nothing was submitted: the attempts are LOST and assigned again
    before the job id        the job may or may not be there, held. It is looked for by its name: found, it is taken; else the
                             submission is made void, and the attempts are LOST. If it turns up later (an sbatch that outlived
                             its coordinator, a request that was under way), it is held, and nothing wants it: the status query,
                             which goes by name, finds and cancels it
    after the job id         the job is followed by its id; if it was not released, it is now

These are the windows that committing the manifest to the tracker would close, and for the same reason: what is written before a
step names everything that the step can bring about. The manifest is only needed where the job's own files are, so it lies there.

Two locks do not depend on Slurm at all. A submission is void when its folder has been renamed: a job script of it finds no folder
to begin in. And each index is claimed by making `N.run`, by the script before it starts the task, or by the executor before it
says LOST, KILLED or RETURNED of a task that has not started: mkdir(2) lets one of them through.

The executor of job mode calls this, in threads: everything here waits for the disk. It decides nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from daggyr.attempts.keys import Ident
from daggyr.attempts.startable import refusal
from daggyr.v1.task_pb2 import Assignment, TaskSpec
from daggyr.whole_file import sync_folder, write_whole
from daggyr_server.executors.believable import MAX_SECONDS
from daggyr_server.executors.slurm.jobs.script import tasks_file

MANIFEST = "manifest"
VOID = ".void"
_HUNDREDTH_NS = 10_000_000  # in which /proc/uptime counts
_MAX_TEXT = 4096  # bytes of a result, or of what a job printed


class Manifest(msgspec.Struct):
    """What is durable before a submission is made."""

    name: str
    keys: Sequence[tuple[int, ...]]  # an Ident each, by index; three numbers: of a version whose keys had no lives
    timeout: float  # seconds; 0 means that there is none
    whole_stdout_bytes: int
    job_id: str = ""
    released: bool = False  # from here: who holds it after that is a person

    def idents(self) -> list[Ident]:
        """The attempts, by index."""
        return [(run_id, number, attempt, life[0] if life else 0) for run_id, number, attempt, *life in self.keys]


@dataclass(slots=True)
class JobReport:
    """What a job told of one attempt, in its files."""

    status: int  # of the shell, which has 128 and its number for a signal
    start: int | None = None  # nanoseconds since the epoch
    stop: int | None = None
    node: str = ""
    stopped: bool = False  # the script was asked to end it, before its timeout had passed
    timed_out: bool = False
    cpu_seconds: float | None = None
    rejected: str | None = None
    by_signal: bool = True  # rather than an exit code above 128
    full: bool = False  # there was no room in the directory, so that output may be missing


@dataclass(slots=True)
class FolderContents:
    """What is in a submission's folder."""

    starts: dict[int, int] = field(default_factory=dict)  # index -> nanoseconds since the epoch
    claimed: set[int] = field(default_factory=set)
    results: set[int] = field(default_factory=set)
    full: set[int] = field(default_factory=set)  # those that were not started, because there was no room


class SubmissionFolder:
    """The folder of one submission. Calls raise OSError."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    def write(self, tasks: Sequence[tuple[int, Assignment, TaskSpec]]) -> None:
        """Make the folder with all that the job needs. When this returns, it survives power loss."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700)
        for index, _, spec in tasks:
            if spec.HasField("stdin"):
                write_whole(self.path / f"{index}.in", spec.stdin.encode(), synced=True)
        write_whole(self.path / "tasks", tasks_file(tasks).encode(), synced=True)
        self._write_manifest()
        sync_folder(self.path.parent)

    def submitted(self, job_id: str) -> None:
        """Write down the job's id. When this returns, that survives power loss."""
        self.manifest.job_id = job_id
        self._write_manifest()

    def released(self) -> None:
        """Write down that it was released. Power loss may undo that."""
        self.manifest.released = True
        write_whole(self.path / MANIFEST, msgspec.json.encode(self.manifest))

    def _write_manifest(self) -> None:
        write_whole(self.path / MANIFEST, msgspec.json.encode(self.manifest), synced=True)
        sync_folder(self.path)

    def void(self) -> bool:
        """Make sure that no job of this submission starts anything any more. Returns False if one has already."""
        if self.look().claimed:
            return False
        moved = self.path.rename(self.path.with_name(self.path.name + VOID))
        sync_folder(self.path.parent)
        if any(path.suffix == ".run" for path in moved.iterdir()):
            moved.rename(self.path)
            return False
        return True

    def claim(self, index: int) -> bool:
        """Take an index, so that its task is never started. Returns False if it was started, or if nobody can know that."""
        try:
            (self.path / f"{index}.run").mkdir()
        except (FileExistsError, FileNotFoundError):  # without its folder, nobody can know
            return False
        sync_folder(self.path)
        return True

    def look(self, starting: Container[int] = ()) -> FolderContents:
        """Return what has happened so far. Start times are read for the indexes in `starting` only, because each costs a file."""
        seen = FolderContents()
        # It is opened anew each time, because NFS shows the changes of others only then.
        with os.scandir(self.path) as entries:
            for entry in entries:
                number, _, kind = entry.name.partition(".")
                if not number.isdecimal():
                    continue
                if kind == "run":
                    seen.claimed.add(int(number))
                elif kind == "full":
                    seen.full.add(int(number))
                elif kind == "result":
                    seen.results.add(int(number))
                elif kind == "start" and int(number) in starting:
                    time, _ = _start(self._text(int(number), kind))
                    if time is not None:
                        seen.starts[int(number)] = time
        return seen

    def result(self, index: int) -> JobReport | None:
        """Return how a task ended whose result is there, or None if the result is not whole."""
        text = self._text(index, "result")
        words = dict(line.partition(" ")[::2] for line in text.splitlines())
        if "status" not in words or "children" not in words or not text.endswith("\n"):
            return None
        told = words.get("status", "255")
        status = min(int(told), 255) if told.isascii() and told.isdecimal() and len(told) < 10 else 255
        refused = self._bytes(index, "rejected")
        start, up = _start(self._text(index, "start"))
        return JobReport(
            status=status,
            start=start,
            stop=_stop(start, up, _nanoseconds(words.get("stop", "")), _uptime(words.get("up", ""))),
            node=words.get("node", ""),
            stopped="stopped" in words,
            timed_out="timeout" in words,
            cpu_seconds=_cpu_seconds(words.get("children", "")),
            by_signal=status > 128 and "exited" not in words,
            full="full" in words,
            rejected=refusal(refused) if refused else None,
        )

    def printed(self, index: int) -> str:
        """Return what the job itself printed, mostly messages of Slurm, in one line."""
        return " ".join(self._text(index, "slurm").split())

    def result_was_lost(self, index: int) -> bool:
        """Whether a job wanted to say how its task ended, and could not write that."""
        return (self.path / f"{index}.part").exists() or (self.path / f"{index}.result").exists()

    def output(self, index: int, stream: str) -> Path:
        """The file of a stream, `out` or `err`."""
        return self.path / f"{index}.{stream}"

    def forget_output(self, index: int) -> None:
        """Remove what a task was given and wrote."""
        for kind in ("out", "err", "in", "slurm"):
            with contextlib.suppress(FileNotFoundError):
                (self.path / f"{index}.{kind}").unlink()

    def remove(self) -> None:
        """Remove the folder. A job that turns up after that finds nowhere to begin."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _text(self, index: int, kind: str) -> str:
        return self._bytes(index, kind).decode(errors="replace")

    def _bytes(self, index: int, kind: str) -> bytes:
        try:
            with (self.path / f"{index}.{kind}").open("rb") as file:
                return file.read(_MAX_TEXT)
        except FileNotFoundError:
            return b""


def kept_submissions(folder: Path, prefix: str) -> Iterator[SubmissionFolder]:
    """Yield the submissions of an earlier coordinator. Folders that were not submitted, or were made void, are removed."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.name.startswith(prefix))
    except FileNotFoundError:
        return
    for path in paths:
        try:
            manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
        except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
            manifest = None  # the manifest is written last, and sbatch comes after it
        if manifest is None or path.name.endswith(VOID):
            shutil.rmtree(path, ignore_errors=True)
        else:
            yield SubmissionFolder(path, manifest)


def probe(folder: Path) -> None:
    """Write something into a folder, and take it away again. Raises OSError if that is impossible."""
    path = folder / ".room"
    try:
        write_whole(path, bytes(65_536), synced=True)
    finally:
        path.unlink(missing_ok=True)


def remove_void(folder: Path, prefix: str) -> None:
    """Remove the folders of submissions that were made void."""
    for path in folder.glob(f"{prefix}*{VOID}"):
        shutil.rmtree(path, ignore_errors=True)


def _nanoseconds(text: str) -> int | None:
    """`date +%s.%N`'s time; None if it is not written whole."""
    seconds, point, fraction = text.strip().partition(".")
    if not (point and seconds.isdecimal() and fraction.isdecimal() and len(fraction) == 9):
        return None
    if len(seconds) > len(str(MAX_SECONDS)) or int(seconds) >= MAX_SECONDS:
        return None  # no clock tells that
    return int(seconds) * 1_000_000_000 + int(fraction)


def _uptime(text: str) -> int | None:
    """The first word of /proc/uptime in nanoseconds; None if it is not there."""
    seconds, point, hundredths = text.partition(".")
    if not (point and seconds.isdecimal() and hundredths.isdecimal() and len(hundredths) == 2 and len(seconds) < 12):
        return None
    return (int(seconds) * 100 + int(hundredths)) * _HUNDREDTH_NS


def _start(text: str) -> tuple[int | None, int | None]:
    """When a task's process was started, by the node's date, and how long the node was up then."""
    date, up, *_ = [*text.split(), "", ""]
    return _nanoseconds(date), _uptime(up)


def _stop(start: int | None, up_then: int | None, stop: int | None, up: int | None) -> int | None:
    """When a task's process had ended. If the node's date was set meanwhile, the uptime tells for how long it ran."""
    if start is None or stop is None or up_then is None or up is None:
        return stop
    took = up - up_then
    return stop if abs(stop - start - took) <= 2 * _HUNDREDTH_NS else start + max(0, took)


def _cpu_seconds(text: str) -> float | None:
    """User and system time of a shell's children, as `times` prints it: `0m0.210000s 0m0.010000s`."""
    total = 0.0
    for word in text.split():
        minutes, _, seconds = word.rstrip("s").partition("m")
        try:
            total += int(minutes) * 60 + float(seconds.replace(",", "."))
        except (OverflowError, ValueError):
            return None
    return total if text else None
