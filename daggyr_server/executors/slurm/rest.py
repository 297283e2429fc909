"""Slurm by slurmrestd: its REST API, v0.0.38 (Slurm 22.05) and later, with a JSON Web Token.

This is one of the two clients (client.py). Each call is one HTTP request, made in a thread. The token is read anew for each
request, so that it is enough to renew the file; no message shows it. A request that was refused is told from one whose effect
nobody knows.

Later versions of the API say some things in other forms (states as lists, numbers as objects); both forms are understood.
https://slurm.schedmd.com/rest_api.html
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

from daggyr.tokens import TokenError, read_secret
from daggyr_server.executors.slurm.client import (
    ALL_OTHERS,
    Job,
    JobStatus,
    SlurmError,
    SlurmLimits,
    SlurmUnavailable,
    indexes,
)
from daggyr_server.executors.slurm.settings import SlurmSettings
from daggyr_server.executors.slurm.words import error_of

REQUEST_SECONDS = 60.0
MAX_ANSWER_BYTES = 1 << 30  # all jobs of a cluster come in one answer
MAX_ARRAY = 1000  # the API does not tell MaxArraySize; slurm.conf(5) has 1001 by default. What is too large is halved
_HELD_ERROR = 2042  # ESLURM_JOB_HELD: said of each job that was submitted held


class SlurmRest:
    """The client of one pool."""

    def __init__(self, settings: SlurmSettings) -> None:
        assert settings.base_url is not None
        self._settings = settings
        self._base = settings.base_url
        self._api = f"/slurm/{settings.api_version}"

    async def limits(self) -> SlurmLimits:
        await self._request("GET", "/ping")
        return SlurmLimits(max_array=MAX_ARRAY)

    async def submit(self, job: Job) -> str:
        settings, needs = self._settings, job.needs
        later = _version(settings.api_version) >= 39
        # `gres` reaches the API of every version, and says the same as `gpus` where a job has one node.
        gres = [*needs.gres, *([("gpu", needs.gpus)] if needs.gpus else [])]
        properties: dict[str, Any] = {
            "name": job.name,
            "hold": True,
            "requeue": False,
            "current_working_directory": str(job.directory),
            "standard_output": str(job.output),
            "environment": [f"{name}={value}" for name, value in job.environment.items()] if later else dict(job.environment),
            "tasks": 1,
            "cpus_per_task": needs.cores,
            "array": f"0-{job.size - 1}" if job.size > 1 else None,
            "memory_per_node": _number(needs.memory_mb, later) if needs.memory_mb else None,
            "licenses": needs.licenses_text or None,
            "time_limit": _number(needs.minutes, later) if needs.minutes is not None else None,
            "partition": settings.partition,
            "account": settings.account,
            "qos": settings.qos,
        }
        if later:
            properties |= {"minimum_nodes": 1, "maximum_nodes": 1}
            properties["tres_per_node"] = ",".join(f"gres/{name}:{units}" for name, units in gres) or None
        else:
            properties |= {"nodes": [1, 1], "gres": ",".join(f"{name}:{units}" for name, units in gres) or None}
        properties = {name: value for name, value in properties.items() if value is not None} | settings.job
        answer = await self._request("POST", "/job/submit", {"script": job.script, "job": properties})
        job_id = answer.get("job_id") or answer.get("result", {}).get("job_id")
        if not job_id:
            raise SlurmUnavailable("slurmrestd answered without a job id")
        return str(job_id)

    async def release(self, job_id: str) -> None:
        await self._request("POST", f"/job/{job_id}", {"hold": False})

    async def jobs(self, prefix: str) -> list[JobStatus]:
        answer = await self._request("GET", "/jobs")
        found: list[JobStatus] = []
        for job in answer.get("jobs", []):
            name = str(job.get("name", ""))
            if not name.startswith(prefix):
                continue
            state = job.get("job_state", "")
            state = str(state[0] if isinstance(state, list) and state else state).upper()
            reason = str(job.get("state_reason") or "")
            reason, node = "" if reason == "None" else reason, str(job.get("nodes") or "")
            array = _plain(job.get("array_job_id")) or _plain(job.get("job_id"))
            waiting = str(job.get("array_task_string") or "")
            if waiting:
                found += [JobStatus(str(array), index, name, state, reason, node) for index in indexes(waiting)]
                if "..." in waiting:  # Slurm cuts long lists off
                    found.append(JobStatus(str(array), ALL_OTHERS, name, state, reason, node))
            else:
                found.append(JobStatus(str(array), _plain(job.get("array_task_id")) or 0, name, state, reason, node))
        return found

    async def cancel(self, tasks: Sequence[str]) -> None:
        await self._delete(tasks, "")

    async def terminate(self, tasks: Sequence[str]) -> None:
        await self._delete(tasks, "?signal=TERM")

    async def _delete(self, tasks: Sequence[str], query: str) -> None:
        for task in tasks:
            try:
                await self._request("DELETE", f"/job/{quote(task)}{query}")
            except SlurmUnavailable:
                raise
            except SlurmError:
                continue  # the task has ended meanwhile

    async def _request(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return await asyncio.to_thread(self._exchange, method, path, content)

    def _exchange(self, method: str, path: str, content: Mapping[str, Any] | None) -> dict[str, Any]:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        token = ""
        try:
            if self._settings.token_file is not None:
                token = headers["X-SLURM-USER-TOKEN"] = read_secret(self._settings.token_file)
        except TokenError as error:
            raise SlurmUnavailable(str(error)) from None
        if self._settings.user is not None:
            headers["X-SLURM-USER-NAME"] = self._settings.user
        connection, base = _connection(self._base)
        try:
            connection.request(method, f"{base}{self._api}{path}", json.dumps(content) if content is not None else None, headers)
            response = connection.getresponse()
            status, data = response.status, response.read(MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise SlurmUnavailable(f"slurmrestd at {self._base}: {error or type(error).__name__}") from None
        finally:
            connection.close()
        try:
            return _answer(status, data, self._base)
        except SlurmUnavailable as error:
            expired = _expired_at(token, time.time())
            if expired is None:
                raise
            raise SlurmUnavailable(
                f"the token in {self._settings.token_file} has expired, at {expired}: write a new one there (`scontrol token`); "
                f"slurmrestd said: {error}"
            ) from None


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=REQUEST_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(base_url: str) -> tuple[http.client.HTTPConnection, str]:
    """Return a connection, and the part of the path that stands before the API's own."""
    if base_url.startswith("unix:"):
        return _UnixConnection(base_url.removeprefix("unix:").replace("//", "/")), ""
    parts = urlsplit(base_url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=REQUEST_SECONDS), parts.path.rstrip("/")


def _answer(status: int, data: bytes, base_url: str) -> dict[str, Any]:
    """Return the JSON of an answer that tells no error. Raises SlurmError."""
    where = f"slurmrestd at {base_url}"
    if status in (401, 403):
        raise SlurmUnavailable(f"{where} does not know who asks: check `user` and whether the token has expired")
    try:
        answer = json.loads(data)
    except ValueError:
        raise SlurmUnavailable(f"{where} answered {status} and no JSON: is `base_url` a slurmrestd's?") from None
    if not isinstance(answer, dict):
        raise SlurmUnavailable(f"{where} answered {status} and no object")
    errors = [error for error in answer.get("errors") or [] if isinstance(error, Mapping)]
    # An error with neither a number nor a name is a remark: 22.05 makes one about arrays that were changed.
    errors = [error for error in errors if _error_number(error) not in (0, _HELD_ERROR)]
    if errors:
        words = "; ".join(" ".join(str(error[key]) for key in ("error", "description") if error.get(key)) for error in errors)
        raise error_of(words[:500])
    if status >= 400:
        raise SlurmUnavailable(f"{where} answered {status}" + ("" if status >= 500 else f": does it have the API {base_url}?"))
    return answer


def _expired_at(token: str, now: float) -> str | None:
    """When a JSON Web Token expired (RFC 7519, 4.1.4), for people; None if it has not, or does not say when it does.

    slurmrestd answers such a token in several ways, none of which says what is wrong with it.
    """
    try:
        claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
        end = claims["exp"]
        return datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if end <= now else None
    except (ArithmeticError, IndexError, KeyError, OSError, TypeError, ValueError):
        return None


def _error_number(error: Mapping[str, Any]) -> int:
    number = error.get("error_code") or error.get("error_number") or 0
    return number if isinstance(number, int) else 0


def _number(value: int, later: bool) -> Any:
    return {"set": True, "infinite": False, "number": value} if later else value


def _plain(value: Any) -> int | None:
    """Return a number in the form of any version of the API, or None if it is not set."""
    if isinstance(value, Mapping):
        value = value.get("number", 0) if value.get("set") else None
    return value if isinstance(value, int) else None


def _version(api: str) -> int:
    return int(api.rpartition(".")[2])
