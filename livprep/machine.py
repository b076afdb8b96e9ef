"""What this process may use: processors and memory, within the limits of its container or batch job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path("/")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def total_memory_bytes(root: Path = ROOT) -> int:
    """Memory that this process could ever get: the machine's, or the lowest limit of its control groups."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _limits(root))])


def free_memory_bytes(root: Path = ROOT) -> int:
    """Memory that is free now, below the limits of the control groups too."""
    free = [int(psutil.virtual_memory().available), *(limit - used for limit, used in _limits(root))]
    return max(0, min(free))


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
