"""Turns typed specifications (daggyr.v1.RunSpec), which programs submit, into the documents that say the same.

The message takes the way of a JSON document, so that one place alone decides what is valid and both have the same faults. The API
calls this for SubmitRun. A message holds 4 MiB at most, so that making the document costs little.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from google.protobuf.duration_pb2 import Duration

from daggyr.v1 import run_pb2
from daggyr_server.spec.decode import decode_json
from daggyr_server.spec.document import RunSpec
from daggyr_server.spec.policies import PoolLimits


def run_spec_from_message(
    message: run_pb2.RunSpec, *, pools: Mapping[str, PoolLimits] | None = None, default_pool: str = ""
) -> RunSpec:
    """The specification in a message. Empty fields count as not given. It raises what `decode_json` raises."""
    document = _given(
        tags=dict(sorted(message.tags.items())),
        parameters={name: list(values.values) for name, values in sorted(message.parameters.items())},
        pool=message.pool,
    )
    # The tasks of a run are ordered, and the entries of a message's map are not.
    document["tasks"] = {name: _definition(task) for name, task in sorted(message.tasks.items())}
    return decode_json(msgspec.json.encode(document), pools=pools, default_pool=default_pool)


def _definition(task: run_pb2.TaskDefinition) -> dict[str, Any]:
    definition = _given(
        children=list(task.children),
        parents=[{"task": parent.task, "match": list(parent.match)} if parent.match else parent.task for parent in task.parents],
        parameters={name: list(values.values) for name, values in sorted(task.parameters.items())},
        is_generator=task.is_generator,
        max_retries=task.max_retries,
        retry_delay=_seconds(task.retry_delay),
        pool=task.pool,
        priority=task.priority,
    )
    if task.HasField("details"):
        details = task.details
        definition["details"] = {
            "command": list(details.command),
            **_given(
                environment=dict(sorted(details.environment.items())),
                working_directory=details.working_directory,
                timeout=_seconds(details.timeout),
                resources=dict(sorted(details.resources.items())),
                whole_stdout_bytes=details.whole_stdout_bytes,  # only the coordinator may set it: an unknown key
            ),
        }
        if details.HasField("stdin"):
            definition["details"]["stdin"] = details.stdin
    return definition


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
