"""MONAI: CacheDataset and PersistentDataset with RandCropByPosNegLabeld (4 crops a volume), on NIfTI.

`CacheDataset, cached indices` is what its tutorials lead to: FgBgToIndicesd before the crop, so that voxels are
searched once. The crop copies those indices (8 bytes a voxel) for each of its samples. `CacheDataset, few indices`
avoids that: at most 4096 indices a class (ClassesToIndicesd), cropped by RandCropByLabelClassesd, the cache not copied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import BATCH, FOREGROUND, Batch, nifti
from benchmarks.volumes import Shape, Volume

SETTINGS = (
    "CacheDataset, cached indices, 0 workers",
    "CacheDataset, cached indices, 2 workers",
    "CacheDataset, few indices, 0 workers",
    "CacheDataset, few indices, 2 workers",
    "PersistentDataset, 2 workers",
)
PACKAGES = ("monai", "torch")
_CROPS = 4
BURST = WARM = _CROPS
_INDICES = 4096
_ENDLESS = 1 << 40


def prepare(volumes: Iterable[Volume], folder: Path, patches: Sequence[Shape]) -> None:
    """Write NIfTI files."""
    nifti.write(volumes, folder)


def files(folder: Path, setting: str, patch: Shape) -> list[Path]:
    """What the patches come from while it runs: nothing where it lies in memory."""
    return sorted((folder / "persistent").glob("*.pt")) if "Persistent" in setting else []


def _transforms(setting: str, patch: Shape) -> Any:
    import torch
    from monai import transforms as t

    keys, size = ["image", "label"], patch[::-1]
    load = [
        t.LoadImaged(keys, image_only=True),
        t.EnsureChannelFirstd(keys),
        t.EnsureTyped("image", track_meta=False),
        t.EnsureTyped("label", dtype=torch.uint8, track_meta=False),
    ]
    if "few" in setting:
        find = [t.ClassesToIndicesd("label", num_classes=3, max_samples_per_class=_INDICES)]
        odds = [1 - FOREGROUND, FOREGROUND / 2, FOREGROUND / 2]
        crop = t.RandCropByLabelClassesd(
            keys, "label", size, odds, num_classes=3, num_samples=_CROPS, indices_key="label_cls_indices"
        )
    elif "Cache" in setting:
        find = [t.FgBgToIndicesd("label")]
        crop = t.RandCropByPosNegLabeld(
            keys, "label", size, FOREGROUND, 1 - FOREGROUND, _CROPS,
            fg_indices_key="label_fg_indices", bg_indices_key="label_bg_indices",
        )  # fmt: skip
    else:  # indices on disk would cost more to load than to search
        find = []
        crop = t.RandCropByPosNegLabeld(keys, "label", size, FOREGROUND, 1 - FOREGROUND, _CROPS)
    return t.Compose([*load, *find, crop, t.SelectItemsd(keys)])


_held: dict[tuple[str, Shape], Any] = {}
"""The data set of the last setting: its cache lives from round to round, two would be 10 GB."""


def _dataset(folder: Path, kind: str, patch: Shape) -> Any:
    """The data set of a kind, made unless it is held."""
    if (kind, patch) not in _held:
        _held.clear()
        _held[kind, patch] = _make(folder, kind, patch)
    return _held[kind, patch]


def _make(folder: Path, kind: str, patch: Shape) -> Any:
    from monai.data import CacheDataset, PersistentDataset

    items = [{"image": str(image), "label": str(label)} for image, label in nifti.pairs(folder)]
    if "Persistent" in kind:
        dataset = PersistentDataset(items, _transforms(kind, patch), cache_dir=folder / "persistent")
        for item in dataset.data:
            dataset._cachecheck(item)  # writes its files, so that rounds only read them
        return dataset
    return CacheDataset(items, _transforms(kind, patch), num_workers=2, progress=False, copy_cache="few" not in kind)


@contextlib.contextmanager
def batches(folder: Path, setting: str, patch: Shape, seed: int, count: int | None = None) -> Iterator[Iterator[Batch]]:
    """Batches of float32 images and uint8 labels; the crops of one volume come as two batches."""
    import torch
    from monai.data import DataLoader
    from monai.utils import set_determinism

    set_determinism(seed)
    kind, _, processes = setting.rpartition(", ")
    workers = int(processes.split()[0])
    dataset = _dataset(folder, kind, patch)
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=_ENDLESS)
    loader = DataLoader(
        dataset, batch_size=1, sampler=sampler, num_workers=workers, prefetch_factor=4 if workers else None
    )
    source = iter(loader)
    try:
        yield _halves(source)
    finally:
        if workers:
            source._shutdown_workers()  # type: ignore[attr-defined]


def _halves(source: Iterator[Any]) -> Iterator[Batch]:
    for crops in source:
        for start in range(0, _CROPS, BATCH):
            yield crops["image"][start : start + BATCH], crops["label"][start : start + BATCH]
