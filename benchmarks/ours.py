"""livtrain's loader as a contestant: our stores at two profiles, two threads or one, packed or with nnU-Net's types."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import BATCH, FOREGROUND, Batch
from benchmarks.volumes import Shape, Volume

PACKED, TYPES = "packed", "nnU-Net's types"
SETTINGS = (
    *(f"{profile}, {deliver}, 2 threads" for profile in ("balanced", "fast") for deliver in (PACKED, TYPES)),
    *(f"{profile}, {PACKED}, 1 thread" for profile in ("balanced", "fast")),
    f"balanced, {PACKED}, 2 threads, held decoded",
)
"""Profile, what is delivered, reading threads; the last one keeps decoded chunks in memory."""
PACKAGES = ("numba", "blosc2", "zarr", "torch")
BURST = BATCH
WARM = 400
"""By then nearly all chunks of eight cases were touched, and their checksums verified, once."""
ODDS = {"anywhere": 1 - FOREGROUND, "liver": FOREGROUND / 2, "tumor": FOREGROUND / 2}


def prepare(volumes: Iterable[Volume], folder: Path, patches: Sequence[Shape]) -> None:
    """The stores are there already: the peers' forms are made from them."""


def _store(folder: Path, setting: str) -> Path:
    return folder.parent / f"{setting.split(',')[0]}.zarr"


def files(folder: Path, setting: str, patch: Shape) -> list[Path]:
    """Shards of the packed arrays."""
    cases = (_store(folder, setting) / "cases").iterdir()
    return [path for case in cases for path in sorted((case / "train").rglob("*")) if path.is_file()]


def touched_bytes(folder: Path, setting: str, patch: Shape, seed: int, count: int) -> int:
    """Compressed bytes of the chunks that the first `count` patches touch, each chunk once."""
    from livprep.schema import PROFILES
    from livprep.store import open_store
    from livtrain.sampling import CaseIndex, PatchSampler

    store = open_store(_store(folder, setting))
    inner = PROFILES[store.meta.profile].inner_zyx
    sampler = PatchSampler([CaseIndex.of(store[case]) for case in store], patch, ODDS, seed)
    chunks = set()
    for counter in range(count):
        ref = sampler[counter]
        ranges = [
            range(low // size, (low + length - 1) // size + 1)
            for low, length, size in zip(ref.origin_zyx, patch, inner, strict=True)
        ]
        chunks |= {(ref.case_id, z, y, x) for z in ranges[0] for y in ranges[1] for x in ranges[2]}
    cases: dict[str, Any] = {case: store[case] for case in store}

    def size_of(case_id: str, index: tuple[int, ...]) -> int:
        case = cases[case_id]
        region = tuple(
            slice(k * n, min((k + 1) * n, length)) for k, n, length in zip(index, inner, case.shape_zyx, strict=True)
        )
        return int(case.packed_bytes(region))

    return sum(size_of(case_id, index) for case_id, *index in chunks)


@contextlib.contextmanager
def batches(folder: Path, setting: str, patch: Shape, seed: int, count: int | None = None) -> Iterator[Iterator[Batch]]:
    """Batches of `livtrain.loader.PatchLoader` on the CPU."""
    from livprep.store import open_store
    from livtrain.loader import PatchLoader

    _, deliver, threads, *held = setting.split(", ")
    loader = PatchLoader(
        open_store(_store(folder, setting)),
        patch,
        BATCH,
        odds=ODDS,
        seed=seed,
        stop=count,
        workers=int(threads[0]),
        deliver="packed" if deliver == PACKED else "nnunet",
        tier="ram" if held else "disk",
    )
    with loader:
        if deliver == PACKED:
            yield ((batch.packed_BZYX,) for batch in loader)
        else:
            yield ((batch.image_BCZYX, batch.labels_BZYX) for batch in loader)
