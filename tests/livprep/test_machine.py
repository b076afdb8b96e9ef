"""Memory is what the control groups leave of the machine's."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import psutil
import pytest

from livprep.machine import cores, free_memory_bytes, total_memory_bytes

MIB = 1 << 20


def group(folder: Path, version: int, limit: str, used: int, unused: int) -> None:
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in ((names[0], limit), (names[1], str(used)), ("memory.stat", f"anon 1\n{names[2]} {unused}\n")):
        (folder / name).write_text(text)


def process(root: Path, line: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(line)


def test_this_process_has_cores_and_memory() -> None:
    assert cores() == len(os.sched_getaffinity(0))
    assert 0 < total_memory_bytes() <= psutil.virtual_memory().total
    assert 0 <= free_memory_bytes() <= psutil.virtual_memory().total


def test_without_control_groups_the_machine_is_all(tmp_path: Path) -> None:
    assert total_memory_bytes(tmp_path) == psutil.virtual_memory().total


@pytest.mark.parametrize(
    "said",
    [
        {"SLURM_CPUS_PER_TASK": "1"},
        {"NCPUS": "1"},
        {"PBS_NUM_PPN": "1"},
        {"LSB_DJOB_NUMPROC": "1"},
        {"LSB_DJOB_NUMPROC": "9", "LSB_MCPU_HOSTS": "node-a 1 node-b 8"},
    ],
)
def test_what_a_batch_job_asked_for_bounds_the_cores(said: dict[str, str]) -> None:
    assert cores(said) == 1
    assert cores(dict.fromkeys(said, "nonsense")) == cores({})


@pytest.mark.parametrize("kind", [resource.RLIMIT_RSS, resource.RLIMIT_AS])
def test_a_limit_of_the_process_counts(kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PBS and LSF set one for the memory that a job asked for."""
    limits = {kind: (64 * MIB, resource.RLIM_INFINITY)}
    monkeypatch.setattr(resource, "getrlimit", lambda asked: limits.get(asked, (resource.RLIM_INFINITY,) * 2))
    assert total_memory_bytes(tmp_path, {}) == 64 * MIB
    assert free_memory_bytes(tmp_path, {}) < 64 * MIB


@pytest.mark.parametrize(
    ("version", "line", "top"),
    [(2, "0::/job/step\n", "sys/fs/cgroup"), (1, "9:cpu:/x\n4:memory:/job/step\n0::/\n", "sys/fs/cgroup/memory")],
)
def test_the_tightest_limit_counts_and_unused_pages_of_files_are_free(
    tmp_path: Path, version: int, line: str, top: str
) -> None:
    process(tmp_path, line)
    group(tmp_path / top / "job/step", version, "max" if version == 2 else str(1 << 62), 5 * MIB, 0)
    group(tmp_path / top / "job", version, str(64 * MIB), 40 * MIB, 10 * MIB)
    assert total_memory_bytes(tmp_path) == 64 * MIB
    assert free_memory_bytes(tmp_path) == 34 * MIB


def test_inside_a_container_the_mounted_top_is_its_own_group(tmp_path: Path) -> None:
    process(tmp_path, "4:memory:/docker/0123456789\n")
    group(tmp_path / "sys/fs/cgroup/memory", 1, str(32 * MIB), 40 * MIB, 0)
    assert total_memory_bytes(tmp_path) == 32 * MIB
    assert free_memory_bytes(tmp_path) == 0


@pytest.mark.parametrize("line", ["", "rubbish\n", "0::/../../escape\n", "4:memory:\n"])
def test_odd_lines_and_files_mean_no_limit(tmp_path: Path, line: str) -> None:
    process(tmp_path, line)
    group(tmp_path / "escape", 2, "1", 0, 0)
    group(tmp_path / "sys/fs/cgroup", 2, "a lot", 0, 0)
    assert total_memory_bytes(tmp_path) == psutil.virtual_memory().total
