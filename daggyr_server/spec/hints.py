"""What to write instead of a key or a quantity that is none: the words of other tools, and keys in another's place.

`check` calls this for the hints of its faults. Nothing here decides what is valid.
"""

from __future__ import annotations

import math
import re

from daggyr_server.spec.document import DefaultDetails, Defaults, Details, RunSpec, TaskDefinition
from daggyr_server.spec.faults import listed, nearest, quoted
from daggyr_server.spec.ignored import PREFIX
from daggyr_server.spec.quantities import MEMORY, TIME, unit_hint

# Names that other tools give to keys of this format, and that people write out of habit.
_OTHER_WORDS = {
    "after": "parents",
    "args": "command",
    "argv": "command",
    "cmd": "command",
    "cwd": "working_directory",
    "dependencies": "parents",
    "depends": "parents",
    "depends_on": "parents",
    "dependson": "parents",
    "directory": "working_directory",
    "downstream": "children",
    "env": "environment",
    "exec": "command",
    "generator": "is_generator",
    "input": "stdin",
    "needs": "parents",
    "queue": "pool",
    "requires": "parents",
    "retries": "max_retries",
    "retry": "max_retries",
    "upstream": "parents",
    "variables": "environment",
    "workdir": "working_directory",
}
SCRIPTS = frozenset({"bash", "run", "sh"})
_OTHER_RESOURCES = {
    "core": "cores",
    "cores": "cores",
    "cpu": "cores",
    "cpus": "cores",
    "gpu": "gpus",
    "gpus": "gpus",
    "mem": "memory_mb",
    "memory": "memory_mb",
    "memory_mb": "memory_mb",
    "ram": "memory_mb",
    "threads": "cores",
}
HARDLY_ANY = ", or 0 if the task hardly needs any"
_TIMES = "write seconds, or a time such as 30s, 5m, 2h, 1d"
_TIME_UNITS = frozenset(
    [
        "s",
        "sec",
        "secs",
        "second",
        "seconds",
        "m",
        "min",
        "mins",
        "minute",
        "minutes",
        "h",
        "hr",
        "hrs",
        "hour",
        "hours",
        "d",
        "day",
        "days",
    ]
)

_DETAILS_KEYS = frozenset(Details.__struct_fields__)
_TASK_KEYS = frozenset(TaskDefinition.__struct_fields__)
_RUN_KEYS = frozenset(RunSpec.__struct_fields__)
_DEFAULT_KEYS = frozenset(Defaults.__struct_fields__)
_DEFAULT_DETAILS_KEYS = frozenset(DefaultDetails.__struct_fields__)


def quantity_hint(text: str, place: str, whole: bool) -> str:
    """The hint that tells what to write instead of a number with a unit; empty if `text` is no such thing."""
    written = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s{0,3}([a-zA-Z]{0,7})", text)
    if written is None:
        return "" if whole else _TIMES
    number, unit = written[1], written[2].lower()
    if not whole:
        short = f"{number}{unit[:1]}"
        return f"write {short}" if unit in _TIME_UNITS and re.search(TIME, short) else _TIMES
    last = place.rpartition(".")[2]
    if last == "memory_mb" and re.fullmatch(r"[kmgt]?i?b?", unit):
        short = f"{number}{unit[:1].upper()}B"
        return f"write {short}" if re.search(MEMORY, short) else "write megabytes, or 512MB, 4GB"
    if not unit and float(number) < 1:
        return f"write 1{HARDLY_ANY}"
    return f"write {math.ceil(float(number))}" if not unit else unit_hint(last)


def key_hint(key: str, known: frozenset[str]) -> str:
    """The hint for a key that does not belong here: where it belongs, which key was meant, or which keys there are.

    `known` are the keys of the structure.
    """
    details = known in (_DETAILS_KEYS, _DEFAULT_DETAILS_KEYS)
    of_task = details or known in (_TASK_KEYS, _DEFAULT_KEYS)
    if key.startswith(PREFIX):
        return "keys that begin with `x-` are ignored at the top and beside `details`, not inside them"
    if details and key in _DEFAULT_KEYS | (_TASK_KEYS if known == _DETAILS_KEYS else frozenset()):
        return f"{quoted(key)} belongs beside `details`, not inside it"
    if not details and of_task and key in (_DETAILS_KEYS if known == _TASK_KEYS else _DEFAULT_DETAILS_KEYS):
        return f"{quoted(key)} belongs inside `details`"
    if known in (_DEFAULT_KEYS, _DEFAULT_DETAILS_KEYS) and key in _TASK_KEYS | _DETAILS_KEYS:
        return f"{quoted(key)} is no default: each task has its own"
    if known == _RUN_KEYS and key in _TASK_KEYS | _DETAILS_KEYS:
        shared = key in _DEFAULT_KEYS or key in _DEFAULT_DETAILS_KEYS
        return f"{quoted(key)} belongs to a task, under `tasks`" + (", or into `defaults`" if shared else "")
    if known != _RUN_KEYS and key in _RUN_KEYS:
        return f"{quoted(key)} belongs to the run, beside `tasks`"
    if key == "whole_stdout_bytes":
        return "the coordinator sets it for generators: write `is_generator` beside `details`"
    word = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key[:100]).replace("-", "_").lower()
    resource = _OTHER_RESOURCES.get(word)
    inside = "" if details else ", inside `details`"
    if resource is not None and of_task:
        return f"write it as a resource{inside}: resources: {{{resource}: ...}}"
    if word in SCRIPTS and of_task:
        return f"write a text as `script`, or a list of words as `command`{inside}"
    other = _OTHER_WORDS.get(word)
    if other is not None and other in known:
        return f"it is called {quoted(other)} here"
    if other is not None and known in (_TASK_KEYS, _DETAILS_KEYS):
        return f"it is called {quoted(other)}, and belongs {'beside' if details else 'inside'} `details`"
    snake_case = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()
    return nearest(snake_case, sorted(known)) or f"the keys here are {listed(sorted(known), most=len(known))}"
