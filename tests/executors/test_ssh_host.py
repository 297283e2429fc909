"""What a host has for tasks is found by the same rules with Python and with the shell on SSH targets."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from test_attempt_shell import SHELLS

from daggyr.control_group import ControlGroup
from daggyr.host_memory import total_memory
from daggyr.host_resources import usable_cores, usable_memory_mb
from daggyr_server.executors.ssh.script import program

HERE = len(os.sched_getaffinity(0))
MEMORY = (total_memory() or 0) // 1024**2
UNIFIED = {"cgroup.controllers": "cpu memory"}
TREES: dict[str, tuple[str, dict[str, str], int, int]] = {
    "none": ("", {}, HERE, MEMORY),
    "v2 without limits": ("0::/a\n", {**UNIFIED, "a/cpu.max": "max 100000", "a/memory.max": "max"}, HERE, MEMORY),
    "a part of a core": ("0::/a\n", {**UNIFIED, "a/cpu.max": "50000 100000", "a/memory.max": "104857600"}, 1, 100),
    "more than one core": ("0::/a\n", {**UNIFIED, "a/cpu.max": "110000 100000"}, min(HERE, 2), MEMORY),
    "next to nothing": ("0::/a\n", {**UNIFIED, "a/cpu.max": "0 100000", "a/memory.max": "1"}, 1, 0),
    "above": ("0::/a/b\n", {**UNIFIED, "a/cpu.max": "100000 100000", "a/b/cpu.max": "max 1", "memory.max": "1048576"}, 1, 1),
    "below and above": ("0::/a/b\n", {**UNIFIED, "a/cpu.max": "900000 100000", "a/b/cpu.max": "1 100000"}, 1, MEMORY),
    "a path of the host's": ("0::/docker/123\n", {**UNIFIED, "cpu.max": "100000 100000", "memory.max": "5242880"}, 1, 5),
    "a path that leaves": ("0::/../..\n", {**UNIFIED, "cpu.max": "100000 100000"}, 1, MEMORY),
    "v1": (
        "5:cpu,cpuacct:/x\n4:memory:/y\n",
        {
            "cpu/x/cpu.cfs_quota_us": "150000",
            "cpu/x/cpu.cfs_period_us": "100000",
            "memory/y/memory.limit_in_bytes": "3145728",
        },
        min(HERE, 2),
        3,
    ),
    "v1 without limits": (
        "5:cpu,cpuacct:/x\n4:memory:/y\n",
        {
            "cpu/x/cpu.cfs_quota_us": "-1",
            "cpu/x/cpu.cfs_period_us": "100000",
            "memory/y/memory.limit_in_bytes": "9223372036854771712",
        },
        HERE,
        MEMORY,
    ),
    "hybrid": (
        "5:cpu:/x\n0::/x\n",
        {"unified/x/cgroup.procs": "", "cpu/cpu.cfs_quota_us": "1", "cpu/cpu.cfs_period_us": "9"},
        1,
        MEMORY,
    ),
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("shell", SHELLS)
def test_both_find_the_same(shell: str, name: str, tmp_path: Path) -> None:
    membership, files, cores, memory_mb = TREES[name]
    (tmp_path / "membership").write_text(membership)
    for path, text in files.items():
        file = tmp_path / "mount" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    group = ControlGroup(tmp_path / "membership", tmp_path / "mount")
    assert (usable_cores(group), usable_memory_mb(group)) == (cores, memory_mb)
    (tmp_path / "mount").mkdir(exist_ok=True)
    script = program() + b'dg_host "$1" "$2" /proc/meminfo 2>/dev/null; echo "$dg_cores $((dg_memory / 1024))"\n'
    (tmp_path / "script").write_bytes(script)
    told = subprocess.run(
        [*SHELLS[shell], str(tmp_path / "script"), str(tmp_path / "membership"), str(tmp_path / "mount")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_THREAD_LIMIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split() == [str(cores), str(memory_mb)]
