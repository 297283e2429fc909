"""Times and memory with units: what they are as numbers, and what to write instead of what is none."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from written_specs import executed, graph_of, refused

from daggyr_server.spec.document import MAX_SECONDS
from daggyr_server.spec.quantities import MEMORY, TIME, megabytes, seconds
from daggyr_server.spec.yaml_text import yaml_to_json


def one(**details: Any) -> dict[str, Any]:
    return {"tasks": {"a": {"details": {"command": ["x"], **details}}}}


@pytest.mark.parametrize(
    ("time", "expected"),
    [(0, 0), (1.5, 1.5), ("0s", 0), ("30s", 30), ("0.5s", 0.5), ("5m", 300), ("1.5h", 5400), ("2h", 7200), ("1d", 86400)],
)
def test_a_time_is_a_number_of_seconds(time: float | str, expected: float) -> None:
    graph = graph_of(one(timeout=time))
    assert graph.policy(0).timeout == expected
    assert executed(graph, 0).timeout.ToNanoseconds() == expected * 10**9
    graph = graph_of({"tasks": {"a": {"details": {"command": ["x"]}, "retry_delay": time}}})
    assert graph.policy(0).retry_delay == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        *[(100, 100), ("1MB", 1), ("512MB", 512), ("4GB", 4096), ("1.5GB", 1536), ("4GiB", 4096), ("1TB", 1024**2)],
        *[("1KB", 1), ("1025KB", 2), ("0MB", 0), ("0.1MB", 1)],
    ],
)
def test_memory_is_a_number_of_megabytes_of_two_to_the_twenty(size: int | str, expected: int) -> None:
    graph = graph_of(one(resources={"memory_mb": size}))
    assert dict(executed(graph, 0).resources) == {"cores": 1, "memory_mb": expected}
    assert dict(graph.policy(0).needs).get("memory_mb", 0) == expected


def test_the_largest_are_within_the_limits() -> None:
    for time in ("999999999.999999999s", "9999999.999999999m", "99999.999999999h", "9999.999999999d"):
        assert re.search(TIME, time)
        assert seconds(time) <= MAX_SECONDS
    assert re.search(MEMORY, "999999999.999999999TB")
    assert megabytes("999999999.999999999TB") < 2**63
    assert executed(graph_of(one(timeout="9999d")), 0).timeout.seconds == 9999 * 86400


@pytest.mark.parametrize(
    ("time", "hint"),
    [
        *[("5 m", "write 5m"), ("5min", "write 5m"), ("5M", "write 5m"), ("2 hours", "write 2h"), ("3 days", "write 3d")],
        *[("300", "write it without quotes: 300"), ("05", "write 5")],
        *[
            (text, "write seconds, or a time such as 30s, 5m, 2h, 1d")
            for text in ("1w", "100000 hours", "1h30m", "soon", "-5m", "5m\n", "", "99999d")
        ],
    ],
)
def test_a_text_that_is_no_time_is_refused_with_a_hint(time: str, hint: str) -> None:
    (fault,) = refused(one(timeout=time))
    assert fault.startswith("tasks.a.details.timeout: a number of seconds is needed, ")
    assert fault.endswith(f" was given; {hint}")


@pytest.mark.parametrize(
    ("resources", "hint"),
    [
        ({"memory_mb": "4G"}, "write 4GB"),
        ({"memory_mb": "1.5 gib"}, "write 1.5GB"),
        ({"memory_mb": "4096"}, "write it without quotes: 4096"),
        ({"memory_mb": "4B"}, "write megabytes, or 512MB, 4GB"),
        ({"memory_mb": 0.5}, "write 1, or 0 if the task hardly needs any"),
        ({"cores": "0.5"}, "write 1, or 0 if the task hardly needs any"),
        ({"cores": 0.5}, "write 1, or 0 if the task hardly needs any"),
        ({"cores": "4GB"}, "write a whole number, without a unit"),
        ({"memory": "4GB"}, "memory is called `memory_mb`"),
    ],
)
def test_a_text_that_is_no_size_is_refused_with_a_hint(resources: dict[str, Any], hint: str) -> None:
    (name,) = resources
    (fault,) = refused(one(resources=resources))
    assert fault.startswith(f"tasks.a.details.resources.{name}: a whole number of units is needed, ")
    assert fault.endswith(f" was given; {hint}")


def test_yaml_gives_numbers_and_units_as_they_are_meant() -> None:
    text = b"""
    tasks:
      a: {details: {command: [x], timeout: 90, resources: {memory_mb: 100, gpus: 1}}, retry_delay: 1.5}
      b: {details: {command: [x], timeout: 90m, resources: {memory_mb: 1.5GB}}, retry_delay: "30"}
    """
    made = yaml_to_json(text)
    assert b'"timeout":90,' in made
    assert b'"retry_delay":30' in made
    graph = graph_of(json.loads(made))
    assert [graph.policy(number).timeout for number in range(2)] == [90, 5400]
    assert [graph.policy(number).retry_delay for number in range(2)] == [1.5, 30]
