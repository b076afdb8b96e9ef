"""TorchIO: Queue over uncompressed NIfTI, 8 patches a volume, LabelSampler with one third foreground."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.peers import BATCH, FOREGROUND, Batch, nifti
from benchmarks.volumes import Shape, Volume

SETTINGS = ("Queue, 2 workers",)
PACKAGES = ("torchio", "torch")
_A_VOLUME = 8
BURST = 4 * _A_VOLUME
"""The queue's length: it is filled with so many patches, then emptied."""
WARM = BURST
_REPEATS = 1000
"""Times that the cases are listed: an epoch's end would restart the workers."""


def prepare(volumes: Iterable[Volume], folder: Path, patches: Sequence[Shape]) -> None:
    """Write NIfTI files."""
    nifti.write(volumes, folder)


def files(folder: Path, setting: str, patch: Shape) -> list[Path]:
    """Images and labels."""
    return [path for pair in nifti.pairs(folder) for path in pair]


@contextlib.contextmanager
def batches(folder: Path, setting: str, patch: Shape, seed: int, count: int | None = None) -> Iterator[Iterator[Batch]]:
    """Batches of int16 images and uint8 labels."""
    import torch
    import torchio

    torch.manual_seed(seed)
    subjects = [
        torchio.Subject(image=torchio.ScalarImage(image), label=torchio.LabelMap(label))
        for image, label in nifti.pairs(folder)
    ]
    odds = {0: 1 - FOREGROUND, 1: FOREGROUND / 2, 2: FOREGROUND / 2}
    queue = torchio.Queue(
        torchio.SubjectsDataset(subjects * _REPEATS),
        max_length=BURST,
        samples_per_volume=_A_VOLUME,
        sampler=torchio.LabelSampler(patch[::-1], "label", odds),
        num_workers=int(setting.split(", ")[1].split()[0]),
    )
    loader = torchio.SubjectsLoader(queue, batch_size=BATCH, num_workers=0)
    try:
        yield ((batch["image"]["data"], batch["label"]["data"]) for batch in loader)
    finally:
        queue._subjects_iterable = None  # its workers end with the iterator
