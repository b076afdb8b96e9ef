"""nnU-Net v2: its own preprocessing, blosc2 files, data loader and multi-process augmenter (without transforms).

The plan is what its planner writes for one CT channel with liver and tumor; spacing and patch are set, so that grid
and patch are those of everyone else. Chunks and blocks follow nnU-Net's rule from the patch: a folder a patch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import BATCH, FOREGROUND, Batch, patch_name
from benchmarks.volumes import Shape, Volume

SETTINGS = ("0 processes", "2 processes")
PACKAGES = ("nnunetv2", "batchgenerators", "blosc2")
BURST = BATCH
WARM = 16 * BATCH
DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "tumor": 2},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}
for _name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(_name, "unused")  # its import says so on stdout otherwise


def plan(spacing_mm: Sequence[float], patch: Shape, intensities: dict[str, float]) -> dict[str, Any]:
    """A 3d_fullres plan as nnU-Net 2.8's default planner writes it, with this spacing (z, y, x) and patch."""
    resample = {"order_z": 0, "force_separate_z": None}
    linear = {"is_seg": False, "order": 1, **resample}
    return {
        "dataset_name": "Dataset001_Liver",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "configurations": {
            "3d_fullres": {
                "data_identifier": "nnUNetPlans_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": BATCH,
                "patch_size": list(patch),
                "spacing": list(spacing_mm),
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **resample},
                "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **resample},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": linear,
                "architecture": {},
            }
        },
    }


def intensities_of(volumes: Iterable[Volume]) -> dict[str, float]:
    """Foreground statistics of the cohort (HU), as nnU-Net's fingerprint holds them."""
    values = np.concatenate([volume.hu[volume.labels > 0][::7] for volume in volumes]).astype(np.float64)
    low, high = np.percentile(values, (0.5, 99.5))
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "percentile_00_5": float(low),
        "percentile_99_5": float(high),
    }


def prepare(
    volumes: Iterable[Volume], folder: Path, patches: Sequence[Shape], spacing_yx_mm: float | None = None
) -> None:
    """Preprocess each case once, at its own or another in-plane spacing, and save it with the chunks of each patch."""
    missing = [patch for patch in patches if not (folder / patch_name(patch)).exists()]
    if not missing:
        return
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    held = list(volumes)
    z, y, x = held[0].spacing_mm
    spacing = (z, spacing_yx_mm or y, spacing_yx_mm or x)
    plans = PlansManager(plan(spacing, patches[0], intensities_of(held)))
    staged = {patch: folder / f".{patch_name(patch)}" for patch in missing}
    for place in staged.values():
        shutil.rmtree(place, ignore_errors=True)  # save_case cannot replace files
        place.mkdir(parents=True)
    for volume in held:
        data, seg, properties = DefaultPreprocessor(verbose=False).run_case_npy(
            volume.hu[None].astype(np.float32),
            volume.labels[None].astype(np.int8),
            {"spacing": list(volume.spacing_mm)},
            plans,
            plans.get_configuration("3d_fullres"),
            DATASET,
        )
        if spacing_yx_mm is None and data.shape[1:] != volume.hu.shape:
            raise SystemExit(f"nnU-Net changed the grid of {volume.case_id}: {data.shape[1:]}")
        for patch, place in staged.items():
            save(data, seg, properties, place / volume.case_id, patch)
    for patch, place in staged.items():
        place.rename(folder / patch_name(patch))


def save(data: Any, seg: Any, properties: dict[str, Any], path: Path, patch: Shape) -> None:
    """The last lines of `DefaultPreprocessor.run_case_save`: float32 and int16 in the chunks of this patch."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    data, seg = data.astype(np.float32, copy=False), seg.astype(np.int16, copy=False)
    blocks, chunks = comp_blosc2_params(data.shape, patch, data.itemsize)
    blocks_seg, chunks_seg = comp_blosc2_params(seg.shape, patch, seg.itemsize)
    nnUNetDatasetBlosc2.save_case(
        data, seg, properties, str(path), chunks=chunks, blocks=blocks, chunks_seg=chunks_seg, blocks_seg=blocks_seg
    )


def files(folder: Path, setting: str, patch: Shape) -> list[Path]:
    """Compressed arrays and pickled properties."""
    return sorted((folder / patch_name(patch)).iterdir())


@contextlib.contextmanager
def batches(folder: Path, setting: str, patch: Shape, seed: int, count: int | None = None) -> Iterator[Iterator[Batch]]:
    """Batches of float32 images and int16 labels, as its trainer gets them without transforms."""
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
    from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    labels = PlansManager(plan((1, 1, 1), patch, {})).get_label_manager(DATASET)
    loader = nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(folder / patch_name(patch))),
        BATCH,
        patch,
        patch,
        labels,
        oversample_foreground_percent=FOREGROUND,
        probabilistic_oversampling=True,  # a batch of two would be half foreground otherwise
    )
    processes = int(setting.split()[0])
    np.random.seed(seed)  # noqa: NPY002 - its loader draws from numpy's own state
    source: Any = (
        # the trainer's own settings
        NonDetMultiThreadedAugmenter(loader, None, processes, num_cached=max(6, processes // 2), wait_time=0.002)
        if processes
        else SingleThreadedAugmenter(loader, None)
    )
    try:
        yield ((batch["data"], batch["target"]) for batch in source)
    finally:
        if processes:
            source._finish()
