"""What this process may use: processors and memory, within the limits of its container or batch job."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

ROOT = Path("/")


_CORES = ("SLURM_CPUS_PER_TASK", "NCPUS", "PBS_NUM_PPN", "LSB_DJOB_NUMPROC")
"""Variables in which SLURM, PBS, Torque and LSF say what processors a job asked for; not all bind it to these."""


def cores(environment: Mapping[str, str] = os.environ) -> int:
    """Processors that this process may use."""
    # LSF over several hosts: `host1 4 host2 8`, the first is that of the script
    here = environment.get("LSB_MCPU_HOSTS", "").split()[1:2]
    said = [*(environment.get(name, "") for name in _CORES), *here]
    asked = [int(text) for text in said if text.isdigit()]
    return max(1, min([len(os.sched_getaffinity(0)), *asked]))


def total_memory_bytes(root: Path = ROOT, environment: Mapping[str, str] = os.environ) -> int:
    """Memory that this process could ever get: the machine's, or the lowest limit of control groups and batch job."""
    limits = [*_limits(root), *_batch_limit(environment)]
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in limits)])


def free_memory_bytes(root: Path = ROOT, environment: Mapping[str, str] = os.environ) -> int:
    """Memory that is free now, below the limits of control groups and batch job too."""
    limits = [*_limits(root), *_batch_limit(environment)]
    free = [int(psutil.virtual_memory().available), *(limit - used for limit, used in limits)]
    return max(0, min(free))


def _batch_limit(environment: Mapping[str, str]) -> Iterator[tuple[int, int]]:
    """What a batch job asked for and what this process has of it, in bytes.

    SLURM says it (sbatch(1): both variables are in MiB); PBS and LSF set a limit of the process (getrlimit(2)), which
    the kernel does not enforce where it is one of resident memory.
    """
    for name, count in (("SLURM_MEM_PER_NODE", "1"), ("SLURM_MEM_PER_CPU", environment.get("SLURM_CPUS_ON_NODE", ""))):
        each = environment.get(name, "")
        if each.isdigit() and count.isdigit() and int(each):  # 0 is all of the node's memory
            yield int(each) * int(count) << 20, int(psutil.Process().memory_info().rss)
    for kind in (resource.RLIMIT_RSS, resource.RLIMIT_AS):
        if (most := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY:
            yield most, int(psutil.Process().memory_info().rss)


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Memory limit and use in bytes of the process's control group and of those above it that have a limit.

    cgroups(7): `0::PATH` in /proc/self/cgroup is the group of version 2, `N:memory:PATH` that of version 1. Pages of
    files that nobody uses count as used there, and are given back when memory runs short.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            top, names = mounted, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = mounted / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = top / path.strip("/")
        # Inside a container the path may be that of the host: the mounted top is the container's own group then.
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(top))):
            if ".." not in folder.parts and (found := _limit_of(folder, *names)) is not None:
                yield found


def _limit_of(folder: Path, limit: str, current: str, unused: str) -> tuple[int, int] | None:
    try:
        most = int((folder / limit).read_text(encoding="ascii"))  # `max` where there is none
        used = int((folder / current).read_text(encoding="ascii"))
        facts = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return most, used - int(facts.get(unused, 0))
    except (OSError, ValueError):
        return None
