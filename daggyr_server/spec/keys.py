"""The keys of the run format in words, each with an example: the source of `daggyr help spec` and of README's tables.

Tests hold that README.md has these tables, that the keys are those of `document`, and that every example is valid. `help` and
`schema` call it. Nothing here decodes anything.
"""

from __future__ import annotations

from typing import NamedTuple


class Key(NamedTuple):
    """Keys that are told together. `words` has Markdown's backquotes; `example` is YAML, at the place where the key stands."""

    names: tuple[str, ...]
    words: str
    example: str


RUN = (
    Key(("tags",), "names and values, to find runs by", "tags: {team: weather, env: test}"),
    Key(
        ("parameters",),
        'a name and its list of values; the name is literal text, such as `"{{MONTH}}"`. `--param MONTH=3` gives it another '
        "value, `--param MONTH=@FILE` one for each line of a file",
        'parameters: {"{{MONTH}}": ["1", "2", "3"]}',
    ),
    Key(("pool",), "where tasks run that do not say otherwise", "pool: farm"),
    Key(
        ("defaults",),
        "keys for all tasks, those of generators too: `max_retries`, `retry_delay`, `pool`, `priority`, and `details` without "
        "`command` and `script`. A task's own go over; `environment` and `resources` are merged by key",
        "defaults: {max_retries: 2, details: {timeout: 30m, environment: {TZ: UTC}}}",
    ),
    Key(("tasks",), "by name, each with the keys below", "tasks: {hello: {details: {command: [echo, hello]}}}"),
    Key(
        ("x-...",),
        "keys that begin with `x-` are ignored, here and in tasks: a home for YAML's anchors",
        "x-big: {resources: {cores: 8, memory_mb: 32GB}}",
    ),
)
TASK = (
    Key(
        ("details.command",),
        "the program and its arguments; no shell unless you call one",
        'details: {command: [python3, fit.py, "{{MONTH}}"]}',
    ),
    Key(
        ("details.script", "details.shell"),
        "instead of a command: a text, which becomes the command `[SHELL..., -c, TEXT]`; the shell is `[/bin/sh, -eu]` unless "
        "given",
        "details: {shell: [bash, -euo, pipefail], script: 'sort < in | uniq > out'}",
    ),
    Key(
        ("details.environment", "details.working_directory", "details.stdin"),
        "of its process; standard input is `/dev/null` unless given",
        'details: {command: [sort], environment: {LC_ALL: C}, working_directory: work, stdin: "b\\na\\n"}',
    ),
    Key(
        ("details.timeout",),
        "seconds, or `30s`, `5m`, `2h`, `1d`; then SIGTERM, and SIGKILL after the pool's `kill_grace` (10 s, unless "
        "`[pools.NAME]` or `[server]` says another), as after a kill",
        "details: {command: [./slow], timeout: 90m}",
    ),
    Key(
        ("details.resources",),
        "any name: integer; `cores` is 1 unless given. `memory_mb` may have a unit: `512MB`, `1.5GB`; a megabyte is 2^20 bytes",
        "details: {command: [./fit], resources: {cores: 4, memory_mb: 4GB, gpus: 1}}",
    ),
    Key(
        ("children", "parents"),
        "names of tasks; a parent may be `{task: NAME, match: [PARAMETERS]}`",
        'parents: [fetch, {task: clean, match: ["{{MONTH}}"]}]',
    ),
    Key(
        ("max_retries", "retry_delay"),
        "how often to try again, and the time before the first retry (as a timeout), doubling",
        "{max_retries: 3, retry_delay: 30s}",
    ),
    Key(("parameters",), "the task's own, over the run's", 'parameters: {"{{SIDE}}": [left, right]}'),
    Key(
        ("is_generator",),
        "makes the task a *generator*: its standard output is a JSON object of more tasks, which join the run",
        "is_generator: true",
    ),
    Key(("pool", "priority"), "where it runs; higher priorities first within a run", "{pool: hpc, priority: 10}"),
)


def table(title: str, keys: tuple[Key, ...]) -> str:
    """Keys as a table in Markdown, as README.md has it."""
    rows = [f"| {', '.join(f'`{name}`' for name in key.names)} | {key.words} |" for key in keys]
    return "\n".join([f"| {title} | is |", "|---|---|", *rows, ""])
