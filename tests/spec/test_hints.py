"""Words of other tools, and values as these write them: each is refused with what it is here, all of them together."""

from __future__ import annotations

import json
import re

from written_specs import refused

from daggyr_server.spec.yaml_text import yaml_to_json

SPEC = """
tasks:
  a:
    depends: [b]
    run: echo hi
    env: {A: b}
    retries: 2
    details: {command: [x]}
  b:
    dependsOn: [a]
    needs: [a]
    shell: bash
    cwd: /tmp
    cpus: 4
    script: x
    details:
      run: echo hi
      shell: bash
      env: {}
      cwd: /tmp
      retries: 2
      mem: 4GB
      cpus: 4
      gpu: 1
      depends: [a]
  c:
    retry_delay: 5min
    max_retries: 0.5
    timeout: 5m
    resources: {cores: 1}
    memory: 4GB
    details:
      command: echo hi
      timeout: 5 m
      resources: {memory_mb: 4G, cores: 0.5, gpus: 4GB}
  d:
    details:
      script: [echo, hi]
      shell: bash -e
"""

HINTS = """
tasks.a.depends: it is called `parents` here
tasks.a.env: it is called `environment`, and belongs inside `details`
tasks.a.retries: it is called `max_retries` here
tasks.a.run: write a text as `script`, or a list of words as `command`, inside `details`
tasks.b.cpus: write it as a resource, inside `details`: resources: {cores: ...}
tasks.b.cwd: it is called `working_directory`, and belongs inside `details`
tasks.b.dependsOn: it is called `parents` here
tasks.b.needs: it is called `parents` here
tasks.b.script: `script` belongs inside `details`
tasks.b.shell: `shell` belongs inside `details`
tasks.b.details.cpus: write it as a resource: resources: {cores: ...}
tasks.b.details.cwd: it is called `working_directory` here
tasks.b.details.depends: it is called `parents`, and belongs beside `details`
tasks.b.details.env: it is called `environment` here
tasks.b.details.gpu: write it as a resource: resources: {gpus: ...}
tasks.b.details.mem: write it as a resource: resources: {memory_mb: ...}
tasks.b.details.retries: it is called `max_retries`, and belongs beside `details`
tasks.b.details.run: write a text as `script`, or a list of words as `command`
tasks.b.details.shell: a list is its program and options, such as [bash, -eu]; the text for it is the task's `script`
tasks.c.memory: write it as a resource, inside `details`: resources: {memory_mb: ...}
tasks.c.resources: `resources` belongs inside `details`
tasks.c.timeout: `timeout` belongs inside `details`
tasks.c.retry_delay: write 5m
tasks.c.max_retries: write 1
tasks.c.details.command: write ["sh", "-c", "echo hi"], or make it the task's `script`
tasks.c.details.timeout: write 5m
tasks.c.details.resources.memory_mb: write 4GB
tasks.c.details.resources.cores: write 1, or 0 if the task hardly needs any
tasks.c.details.resources.gpus: write a whole number, without a unit
tasks.d.details.script: a list of words is a `command`
tasks.d.details.shell: a list is its program and options, such as [bash, -eu]; the text for it is the task's `script`
"""


def test_words_of_other_tools_are_told_all_together() -> None:
    faults = refused(json.loads(yaml_to_json(SPEC.encode())))
    told = [re.fullmatch(r"(\S+): .*?(?:there is no such key|was given); (.*)", fault) for fault in faults]
    assert [f"{found[1]}: {found[2]}" for found in told if found] == HINTS.strip().splitlines()
    assert all(told)
