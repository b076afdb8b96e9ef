"""Loaders that are measured beside each other: one module each, all with the same few names.

A module is a `Contestant`. Its libraries are imported when it is used, in the process that measures it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, cast

from benchmarks.volumes import Shape, Volume

Batch = tuple[Any, ...]
"""Arrays or tensors with one entry a patch along their first axis: the image, then the labels unless packed."""
BATCH = 2
FOREGROUND = 1 / 3
"""Share of patches centered on a voxel of liver or tumor."""


class Contestant(Protocol):
    """What a module of a loader offers."""

    SETTINGS: Sequence[str]
    """Ways to run it, such as with 0 or 2 worker processes."""
    PACKAGES: Sequence[str]
    """Distributions whose versions are reported."""
    BURST: int
    """Patches after which it has gone through one cycle of filling its buffers; a measurement ends there."""

    WARM: int
    """Patches after which it runs as it does for hours; warming up takes so many at least."""

    def prepare(self, volumes: Iterable[Volume], folder: Path, patches: Sequence[Shape]) -> None:
        """Write the loader's own form of the cases below `folder`, unless it is there."""

    def files(self, folder: Path, setting: str, patch: Shape) -> list[Path]:
        """Files that the patches come from."""

    def batches(
        self, folder: Path, setting: str, patch: Shape, seed: int, count: int | None = None
    ) -> AbstractContextManager[Iterator[Batch]]:
        """Batches of `BATCH` patches without end; with `count` a loader that can stops reading there."""


PEERS = ("nnunet", "tensorstore", "monai", "torchio")


def contestant(name: str) -> Contestant:
    """The module of a loader: one of `PEERS`, or `ours`."""
    return cast(
        Contestant, importlib.import_module("benchmarks.ours" if name == "ours" else f"benchmarks.peers.{name}")
    )


def patch_name(patch: Shape) -> str:
    """A patch's shape as a word."""
    return "x".join(map(str, patch))
