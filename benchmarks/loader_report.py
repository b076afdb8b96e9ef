"""Tables of `bench_loader` as Markdown: targets, patches per second, cold reading, sizes."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.contest import Measured
from benchmarks.machine import describe
from benchmarks.peers import contestant, patch_name
from benchmarks.volumes import Shape

if TYPE_CHECKING:
    from benchmarks.bench_loader import Key, Results

TARGETS: tuple[tuple[str, str, str, float], ...] = (
    ("balanced, packed, 2 threads", "nnunet", "", 7.5),
    ("fast, packed, 2 threads", "nnunet", "", 18),
    ("balanced, nnU-Net's types, 2 threads", "nnunet", "", 5.5),
    ("fast, nnU-Net's types, 2 threads", "nnunet", "", 9),
    ("balanced, packed, 1 thread", "nnunet", "", 4),
    ("balanced, packed, 2 threads", "monai", "CacheDataset, cached indices", 40),
    ("balanced, packed, 2 threads", "monai", "CacheDataset, few indices", 40),
    ("balanced, packed, 2 threads", "monai", "PersistentDataset", 100),
    ("balanced, packed, 2 threads", "torchio", "Queue", 200),
    ("balanced, packed, 2 threads", "tensorstore", "balanced", 5),
)
"""Setting of ours, whom it is compared with, how their settings begin, and the ratio that is wanted."""
RESAMPLED = "balanced-1mm.zarr"
COLD_RATIO, COLD_BYTES, SIZE_RATIO = 1.2, 1.2, 0.6


@dataclass(frozen=True)
class About:
    """What was run."""

    options: argparse.Namespace
    shape_zyx: Shape
    names: list[str]
    load_before: tuple[float, float, float]
    load_after: tuple[float, float, float]


def render(about: About, results: Results, patches: list[Shape], scratch: Path) -> str:
    """The whole report."""
    names = [patch_name(patch) for patch in patches]
    parts = [
        "# Loaders beside each other",
        configuration(about),
        *targets(results, names),
        *warm_table(results, names),
        *cold_table(results, names),
        *sizes(scratch, patches, "nnunet" in about.names),
    ]
    if results.failed:
        parts += ["", "Failed:", *(f"* {' | '.join(key)}: {why}" for key, why in results.failed.items())]
    return "\n".join(parts) + "\n"


def configuration(about: About) -> str:
    """Machine, versions and settings."""
    options = about.options
    packages = dict.fromkeys(package for name in about.names for package in contestant(name).PACKAGES)
    shape = "x".join(map(str, about.shape_zyx))
    return (
        f"\n`python -m benchmarks.bench_loader`: {options.cases} synthetic cases of {shape} voxels, batch 2, one third "
        f"centered on foreground,\nno augmentation; {options.rounds} interleaved rounds ({options.slow_rounds} of "
        f"MONAI and TorchIO) of {options.seconds:g} s after {options.warm:g} s of warming up; CPU ms are user + system "
        f"of all\nthreads and workers. Ratios are medians of the rounds, each to the better of nnU-Net with 0 and 2 "
        f"processes in the same round;\nCPU: how many times less processor time a patch takes. No consumer reads the "
        "batches.\n\n"
        f"{describe(*packages)}; load {about.load_before[0]:.1f} before, {about.load_after[0]:.1f} after."
    )


def better(table: dict[Key, dict[int, Measured]], name: str, begins: str, patch: str) -> dict[int, Measured]:
    """Round -> the fastest setting of a contestant that begins so."""
    best: dict[int, Measured] = {}
    for (who, setting, where), measured in table.items():
        if who == name and setting.startswith(begins) and where == patch:
            for number, value in measured.items():
                if number not in best or value.per_s > best[number].per_s:
                    best[number] = value
    return best


def ratio(measured: dict[int, Measured], bar: dict[int, Measured]) -> float | None:
    """Median over the rounds that both have."""
    shared = [value.per_s / bar[number].per_s for number, value in measured.items() if number in bar]
    return statistics.median(shared) if shared else None


def cpu_ratio(measured: dict[int, Measured], bar: dict[int, Measured]) -> float:
    """How many times less processor time a patch takes; median over the rounds that both have."""
    return statistics.median(bar[number].cpu_ms / value.cpu_ms for number, value in measured.items() if number in bar)


def targets(results: Results, patches: list[str]) -> list[str]:
    """Wanted and measured ratios."""
    rows = [
        "",
        "## Targets",
        "",
        f"| ours | against | wanted | {' | '.join(patches)} |",
        "|---|---|---|" + "---|" * len(patches),
    ]
    for setting, peer, begins, wanted in TARGETS:
        found = []
        for patch in patches:
            measured, bar = results.warm.get(("ours", setting, patch), {}), better(results.warm, peer, begins, patch)
            value = ratio(measured, bar)
            if value is None:
                found.append("-")
                continue
            missed = "" if value >= wanted else " **missed**"
            found.append(f"{value:.1f}{missed} (CPU {cpu_ratio(measured, bar):.1f})")
        against = "the better nnU-Net" if peer == "nnunet" else f"{peer}, {begins}"
        rows.append(f"| {setting} | {against} | {wanted:g} | {' | '.join(found)} |")
    return rows


def warm_table(results: Results, patches: list[str]) -> list[str]:
    """Every loader: patches per second, their range, ratio, processor time."""
    rows = ["", "## Warm: patches per second (least-most), x the better nnU-Net, CPU ms a patch", ""]
    rows += [f"| loader | delivers | {' | '.join(patches)} |", "|---|---|" + "---|" * len(patches)]
    for name, setting in ordered(results.warm):
        cells, delivers = [], ""
        for patch in patches:
            measured = results.warm.get((name, setting, patch), {})
            if not measured:
                cells.append("-")
                continue
            delivers = next(iter(measured.values())).delivers
            times = ratio(measured, better(results.warm, "nnunet", "", patch))
            shown = "" if times is None else f", {times:.2f} x"
            cells.append(f"{spread(value.per_s for value in measured.values())}{shown}, {cpu_ms(measured)} ms")
        rows.append(f"| {name}: {setting} | {delivers} | {' | '.join(cells)} |")
    return rows


def cold_table(results: Results, patches: list[str]) -> list[str]:
    """Reading from disk: rate, ratio, bytes against the chunks that the patches lie in."""
    rows = ["", "## Cold: files dropped from memory before each measurement", ""]
    rows += [
        f"Wanted of ours: at least {COLD_RATIO} x nnU-Net, at most {COLD_BYTES} x the bytes of the chunks touched.",
        "",
    ]
    rows += [f"| loader | {' | '.join(patches)} |", "|---|" + "---|" * len(patches)]
    for name, setting in ordered(results.cold):
        cells = []
        for patch in patches:
            key = (name, setting, patch)
            measured = results.cold.get(key, {})
            if not measured:
                cells.append("-")
                continue
            times = ratio(measured, better(results.cold, "nnunet", "", patch))
            per_patch = statistics.median(value.disk_bytes / value.patches for value in measured.values()) / 1e6
            cell = f"{spread(value.per_s for value in measured.values())}{'' if times is None else f', {times:.2f} x'}"
            cell += f", {per_patch:.1f} MB a patch"
            touched = results.touched.get(key)
            if touched:
                shares = [value.disk_bytes / touched[number] for number, value in measured.items() if number in touched]
                cell += f" ({statistics.median(shares):.2f} x the chunks)"
            cells.append(cell)
        rows.append(f"| {name}: {setting} | {' | '.join(cells)} |")
    return rows


def sizes(scratch: Path, patches: list[Shape], with_peer: bool) -> list[str]:
    """Bytes of every array of ours, and of nnU-Net's files of the same cases."""
    rows = ["", "## Sizes, MB a case", "", "| array | balanced | fast | small |", "|---|---|---|---|"]
    arrays: dict[str, dict[str, float]] = {}
    for profile in ("balanced", "fast", "small"):
        cases = sorted((scratch / f"{profile}.zarr" / "cases").glob("*/"))
        for array in sorted(path.parent for case in cases for path in case.rglob("zarr.json")):
            if not (array / "c").exists():
                continue
            name = array.relative_to(scratch / f"{profile}.zarr" / "cases").as_posix().split("/", 1)[1]
            sized = arrays.setdefault(name, {})
            sized[profile] = sized.get(profile, 0.0) + weigh([array]) / 1e6 / len(cases)
    for name, found in arrays.items():
        if max(found.values()) >= 0.01:
            rows.append(
                f"| {name} | " + " | ".join(f"{found.get(p, 0):.2f}" for p in ("balanced", "fast", "small")) + " |"
            )
    if not with_peer:
        return rows
    rows += ["", "| the same cases | nnU-Net's image | labels | properties | packed, balanced | / (image + labels) |"]
    rows.append("|---|---|---|---|---|---|")
    for patch in patches:
        folder = scratch / "nnunet" / patch_name(patch)
        rows.append(against_nnunet(f"own grid, chunks for {patch_name(patch)}", folder, scratch / "balanced.zarr"))
    folder = scratch / "nnunet-resampled" / patch_name(patches[0])
    if folder.exists():
        title = f"1 mm in-plane ({len(list(folder.glob('*.pkl')))} cases), chunks for {folder.name}"
        rows.append(against_nnunet(title, folder, scratch / RESAMPLED))
    return rows


def against_nnunet(title: str, folder: Path, store: Path) -> str:
    """A row: MB a case of nnU-Net's files and of our packed arrays."""
    labels, properties = list(folder.glob("*_seg.b2nd")), list(folder.glob("*.pkl"))
    images = [path for path in folder.glob("*.b2nd") if path not in labels]
    packed = list((store / "cases").glob("*/train/packed"))
    image, label, rest = (weigh(paths) / 1e6 / len(images) for paths in (images, labels, properties))
    ours = weigh(packed) / 1e6 / len(packed)
    share = ours / (image + label)
    verdict = "" if share <= SIZE_RATIO else f" **missed** (wanted {SIZE_RATIO})"
    return f"| {title} | {image:.2f} | {label:.2f} | {rest:.2f} | {ours:.2f} | {share:.2f}{verdict} |"


def ordered(table: Iterable[Key]) -> list[tuple[str, str]]:
    """Contestants and settings in the order in which they were measured first."""
    return list(dict.fromkeys((name, setting) for name, setting, _ in sorted(table, key=lambda key: key[0] != "ours")))


def weigh(paths: Iterable[Path]) -> int:
    """Bytes of files, and of all files in folders."""
    return sum(
        file.stat().st_size
        for path in paths
        for file in (path.rglob("*") if path.is_dir() else [path])
        if file.is_file()
    )


def spread(values: Iterable[float]) -> str:
    """Median with least and most."""
    listed = list(values)
    digits = 0 if min(listed) >= 20 else 1
    return f"**{statistics.median(listed):.{digits}f}** ({min(listed):.{digits}f}-{max(listed):.{digits}f})"


def cpu_ms(measured: dict[int, Measured]) -> str:
    """Median processor time of a patch."""
    value = statistics.median(entry.cpu_ms for entry in measured.values())
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
