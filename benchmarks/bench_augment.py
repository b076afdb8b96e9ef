"""Processor time of augmentation, ours beside nnU-Net's own transforms where nnunetv2 can be imported.

    python -m benchmarks.bench_augment [--patches 200] [--rounds 5] [--patch 128 128 128] [--device cpu] [--parts]

Both sides get patches of the same synthetic volume, in memory; reading is not counted. nnU-Net gets what its loader
gives it (float32 image and int16 labels of its initial patch, 205^3 for 128^3) and runs the transforms that
nnUNetTrainer.get_training_transforms returns; ours gets packed voxels with the margin of each draw, runs the preset
`nnunet`, and delivers one windowed channel and labels. Rounds alternate; the figures are of one thread on each side,
as nnU-Net's workers have. `--parts` gives each transform alone, at probability 1.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.machine import describe
from livprep.windows import Window, WindowBank
from livtrain.augment import Augmenter
from livtrain.augment_config import AugmentSettings

Shape = tuple[int, int, int]
SPACING_MM = (1.0, 0.8, 0.8)
WINDOW = Window(40, 220)
PARTS: dict[str, dict[str, Any]] = {
    "nothing (windowing alone)": {},
    "mirroring": {"flip_z": True, "flip_y": True, "flip_x": True},
    "rotation": {"rotation": {"p": 1, "max_deg": 30}},
    "scaling": {"scaling": {"p": 1, "field": (0.7, 1.4)}},
    "elastic": {"elastic": 1},
    "window jitter": {"window": 1},
    "noise": {"noise": 1},
    "blur": {"blur": 1},
    "brightness": {"brightness": 1},
    "contrast": {"contrast": 1},
    "low resolution": {"low_resolution": 1},
    "gamma": {"gamma": 1},
}


def packed_volume(size: int) -> npt.NDArray[np.uint16]:
    """A cube of soft tissue with noise and two labels, packed."""
    rng = np.random.default_rng(0)
    at = np.linspace(-1, 1, size, dtype=np.float32)
    radius = np.sqrt(at[:, None, None] ** 2 + at[None, :, None] ** 2 + at[None, None, :] ** 2)
    hu = 60 + 30 * np.sin(9 * radius) + 20 * rng.standard_normal((size,) * 3, dtype=np.float32)
    labels = (radius < 0.6).astype(np.uint16) + (radius < 0.2)
    packed: npt.NDArray[np.uint16] = (hu + 1024).astype(np.uint16) | (labels << 12)
    return packed


def cut(volume: npt.NDArray[Any], patch: Shape, margin: Shape) -> npt.NDArray[Any]:
    """The middle of a volume, copied."""
    starts = [n // 2 - p // 2 - m for n, p, m in zip(volume.shape, patch, margin, strict=True)]
    region = tuple(slice(s, s + p + 2 * m) for s, p, m in zip(starts, patch, margin, strict=True))
    return np.ascontiguousarray(volume[region])


def ours(
    volume: npt.NDArray[np.uint16], patch: Shape, settings: AugmentSettings, device: torch.device, batch: int = 2
) -> Callable[[int], tuple[float, float]]:
    """A function that augments one batch and says its processor and wall seconds."""
    augmenter = Augmenter(settings, patch, 0, WindowBank((WINDOW,)))

    def run(k: int) -> tuple[float, float]:
        counters = range(k * batch, (k + 1) * batch)
        began = time.process_time()
        margins = [augmenter.margin(counter, SPACING_MM) for counter in counters]
        drawn = time.process_time() - began
        regions = [torch.from_numpy(cut(volume, patch, margin)).to(device) for margin in margins]
        return timed(
            lambda: augmenter.from_packed(regions, counters=counters, spacing_mm=[SPACING_MM] * batch), device, drawn
        )

    return run


def stored(
    volume: npt.NDArray[np.uint16], patch: Shape, settings: AugmentSettings
) -> Callable[[int], tuple[float, float]]:
    """The same from a channel and labels, which torch's grid_sample resamples on every device."""
    augmenter = Augmenter(settings, patch, 0, WindowBank((WINDOW,)))

    def run(k: int) -> tuple[float, float]:
        region = cut(volume, patch, augmenter.margin(k, SPACING_MM))
        image, labels = torch.from_numpy((region & 0xFFF) / np.float32(4095)), torch.from_numpy(region >> 12)
        pair = [image[None]], [labels.view(torch.int16).to(torch.uint8)]
        return timed(
            lambda: augmenter.from_channels(*pair, counters=[k], spacing_mm=[SPACING_MM]), torch.device("cpu"), 0.0
        )

    return run


def theirs(volume: npt.NDArray[np.uint16], patch: Shape, batch: int = 2) -> Callable[[int], tuple[float, float]]:
    """The same for nnU-Net, whose transforms take one patch after the other."""
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    flat = max(patch) / patch[0] > 3  # ANISO_THRESHOLD
    angle = np.pi if flat else np.pi / 6
    first = get_patch_size(patch, (-angle, angle), (-angle, angle), (-angle, angle), (0.85, 1.25))
    if flat:
        first[0] = patch[0]
    z, y, x = (min(int(n), size) for n, size in zip(first, volume.shape, strict=True))
    chain = nnUNetTrainer.get_training_transforms(patch, (-angle, angle), None, (0, 1, 2), flat)
    region = cut(volume, (z, y, x), (0, 0, 0))
    image = torch.from_numpy((((region & 0xFFF).astype(np.float32) - 1024) - 99) / 39)[None]
    labels = torch.from_numpy((region >> 12).astype(np.int16))[None]

    def run(_: int) -> tuple[float, float]:
        pairs = [{"image": image.clone(), "segmentation": labels.clone()} for _ in range(batch)]
        return timed(lambda: [chain(**pair) for pair in pairs], torch.device("cpu"), 0.0)

    return run


def timed(work: Callable[[], object], device: torch.device, before_s: float) -> tuple[float, float]:
    """Processor and wall seconds of a call, and of what came before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() - cpu + before_s, time.perf_counter() - wall + before_s


def mean_ms(run: Callable[[int], tuple[float, float]], batches: Sequence[int], batch: int = 2) -> tuple[float, float]:
    """Mean processor and wall milliseconds of a patch."""
    figures = [run(k) for k in batches]
    cpu_s, wall_s = (sum(part) / (len(figures) * batch) for part in zip(*figures, strict=True))
    return 1e3 * cpu_s, 1e3 * wall_s


def compare(volume: npt.NDArray[np.uint16], patch: Shape, patches: int, rounds: int, device: torch.device) -> None:
    """Alternate rounds of both sides and print their means and ratio."""
    sides = {"ours": ours(volume, patch, AugmentSettings(preset="nnunet"), device)}
    try:
        sides["nnU-Net"] = theirs(volume, patch)
    except ImportError as error:
        print(f"nnU-Net left out: {error}")
    for run in sides.values():
        mean_ms(run, range(10_000, 10_010))  # compile, measure kernels (nnU-Net's blur), fill caches
    each = max(1, patches // (2 * rounds))
    rows: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for turn in range(rounds):
        for side, run in sides.items():
            rows[side].append(mean_ms(run, range(turn * each, (turn + 1) * each)))
    for side, figures in rows.items():
        cpu, wall = (statistics.median(part) for part in zip(*figures, strict=True))
        low, high = min(f[0] for f in figures), max(f[0] for f in figures)
        size = "x".join(map(str, patch))
        print(f"| {side} | {size} | {2 * each * rounds} | {cpu:.1f} ({low:.1f}-{high:.1f}) | {wall:.1f} |")
    if "nnU-Net" in rows:
        ratios = [b[0] / a[0] for a, b in zip(rows["ours"], rows["nnU-Net"], strict=True)]
        print(f"nnU-Net's processor time / ours: {statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})")


def main() -> None:
    """Print one line a side, or one a transform."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patch", type=int, nargs=3, default=(128, 128, 128))
    parser.add_argument("--volume", type=int, default=400, help="voxels of the cube's edge")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parts", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    patch, device = tuple(options.patch), torch.device(options.device)
    volume = packed_volume(options.volume)
    print(describe("torch", "numpy", "numba"), f"; {options.threads} threads, {device}")
    if not options.parts:
        compare(volume, patch, options.patches, options.rounds, device)
        return
    for name, changes in PARTS.items():
        run = ours(volume, patch, AugmentSettings(preset="none", **changes), device)
        mean_ms(run, range(10_000, 10_002))
        cpu, wall = mean_ms(run, range(max(1, options.patches // 2)))
        print(f"| {name} | {cpu:.1f} | {wall:.1f} |")
    if device.type == "cpu":
        run = stored(volume, patch, AugmentSettings(preset="none", **PARTS["rotation"]))
        mean_ms(run, range(10_000, 10_002), 1)
        cpu, wall = mean_ms(run, range(options.patches), 1)
        print(f"| rotation, by grid_sample | {cpu:.1f} | {wall:.1f} |")


if __name__ == "__main__":
    main()
