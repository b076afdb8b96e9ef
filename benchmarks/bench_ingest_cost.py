"""Processor seconds and peak memory of ingesting one case: ours, its unavoidable parts, and what others spend.

    python -m benchmarks.bench_ingest_cost [--data DIR] [--rounds 3] [--markdown benchmarks/results/ingest_cost.md]

The cases are 3DIRCADb 1 (zipped DICOM) and LiTS volume-28 (.nii.gz) of `--data` or LIVPREP_REAL_DATA, or phantoms of
the same forms; at native spacing and at 1 mm in-plane. Every measurement is a process of its own that did a tiny case
of the same form before: imports and compilation are out of it, on every side. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import functools
import gc
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import ingest_peers
from benchmarks.ingest_parts import grid_of, measure
from benchmarks.ingest_peers import Files
from benchmarks.machine import describe
from livprep.catalog import load_catalog
from livprep.convert import IngestJob, ingest_case
from livprep.formats.nifti_write import write_nifti
from livprep.geometry import Geometry
from livprep.prepare import Preparation
from livprep.sources import catalog_beside, discover
from livprep.store import create_store, open_store
from livprep.synthesis import write_phantoms

Work = Callable[[Files, float | None, Path], None]
CASES = ("ircadb-01", "lits-028")
NNUNET, PLAIN = "nnU-Net", "plain"
TARGETS = (("parts", 1.3, "at most"), (NNUNET, 10.0, "at least"), (PLAIN, 2.0, "at least"))
MEMORY_GB = 0.6


@dataclass(frozen=True)
class Cost:
    """Processor and wall seconds, and peak resident bytes above what the process held before."""

    cpu_s: float
    wall_s: float
    peak_bytes: int


def ours(files: Files, spacing_yx_mm: float | None, out: Path) -> None:
    """`livprep ingest` of one case with one worker."""
    source = files.scan.parent
    catalog = load_catalog(catalog_beside([source]))
    case = next(case for case in discover([source], catalog).cases)
    preparation = Preparation((None, spacing_yx_mm, spacing_yx_mm))
    create_store(out / "store", preparation, "balanced", catalog.digest)
    receipt = ingest_case(IngestJob(case, str(out / "store"), catalog, preparation, "balanced"))
    if receipt.status != "published":
        raise RuntimeError(str(receipt))


def contestants(case: str, peers: bool) -> dict[str, Work]:
    """Name -> work, for a case of that form."""
    works: dict[str, Work] = {"livprep ingest": ours}
    if not peers:
        return works
    works[f"{NNUNET} run_case"] = functools.partial(ingest_peers.nnunet, save=False)
    works[f"{NNUNET} run_case_save"] = functools.partial(ingest_peers.nnunet, save=True)
    readers = ("SimpleITK", "nibabel") if case.startswith("lits") else ("SimpleITK",)
    for reader in readers:
        for how in ("linear", "bspline"):
            works[f"{PLAIN}: {reader}, SimpleITK {how}, zarr-python"] = functools.partial(
                ingest_peers.plain, reader=reader, how=how
            )
    return works


def cost_of(work: Work, warm: Files, files: Files, spacing_yx_mm: float | None) -> Cost:
    """Run a tiny case and then the case in a fresh process."""
    cost: Cost = in_fresh_process(_measure, work, warm, files, spacing_yx_mm)
    return cost


def in_fresh_process(target: Callable[..., None], *arguments: Any) -> Any:
    """What `target` sends through the pipe that is its first argument."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=target, args=(far, *arguments))
    process.start()
    far.close()
    try:
        sent = near.recv()
    except EOFError:
        raise RuntimeError("the measured process failed") from None
    process.join()
    return sent


def _measure(pipe: Connection, work: Work, warm: Files, files: Files, spacing_yx_mm: float | None) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for place in ("warm", "case"):
            Path(scratch, place).mkdir()
        work(warm, spacing_yx_mm and 5.0, Path(scratch, "warm"))
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the peak back to what is held now
        held = _status_bytes("VmRSS")
        cpu, started = _cpu_s(), time.perf_counter()
        work(files, spacing_yx_mm, Path(scratch, "case"))
        pipe.send(Cost(_cpu_s() - cpu, time.perf_counter() - started, _status_bytes("VmHWM") - held))


def _cpu_s() -> float:
    """User and system seconds of this process and its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def files_of(case: str, sources: Path, scratch: Path) -> Files:
    """Where a case lies, and its pair of .nii.gz on the source's grid in LPS."""
    if case.startswith("ircadb"):
        folder = sources / "ircadb" / "3Dircadb1.1"
        scan, masks = folder / "PATIENT_DICOM.zip", folder / "MASKS_DICOM.zip"
    else:
        scan, masks = sources / "lits" / "volume-28.nii.gz", sources / "lits" / "segmentation-28.nii.gz"
    image, label = scratch / f"{case}.nii.gz", scratch / f"{case}_label.nii.gz"
    files = Files(scan, masks, image, label)
    with tempfile.TemporaryDirectory() as place:
        ours(files, None, Path(place))
        (stored,) = open_store(Path(place) / "store").values()
        write_nifti(image, stored.read_hu(), stored.geometry.affine_ras)
        write_nifti(label, stored.read_labels(), stored.geometry.affine_ras)
    return files


def phantoms(folder: Path, size: int) -> Path:
    """The same two forms with phantoms: zipped 3DIRCADb 1, LiTS 28."""
    write_phantoms(folder, "both", cases=2, seed=0, size=size)
    return folder


def parts_of(case: str, warm: Files, files: Files, spacing_yx_mm: float | None) -> dict[str, float]:
    """Processor seconds of what no program can leave out, under the conditions of `cost_of`."""
    grids = tuple(grid_of([place.scan.parent], case) for place in (warm, files))
    found: dict[str, float] = in_fresh_process(_measure_parts, case, (warm, files), grids, spacing_yx_mm)
    return found


def _measure_parts(
    pipe: Connection, case: str, both: tuple[Files, Files], grids: tuple[Geometry, Geometry], spacing: float | None
) -> None:
    found: dict[str, float] = {}
    for files, grid, millimeters in zip(both, grids, (spacing and 5.0, spacing), strict=True):
        found = measure([files.scan.parent], case, Preparation((None, millimeters, millimeters)), grid)
    pipe.send(found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("LIVPREP_REAL_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--phantoms", type=int, metavar="SIZE", help="phantoms of SIZE pixels in place of patients")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", choices=("all", "none"), default="all")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here too")
    options = parser.parse_args()
    lines = ["# Cost of ingesting one case", "", configuration(options)]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        tiny = phantoms(scratch / "tiny", 40)
        sources = phantoms(scratch / "phantoms", options.phantoms) if options.phantoms else options.data
        for case in CASES:
            (scratch / "pairs").mkdir(exist_ok=True)
            (scratch / "tiny pairs").mkdir(exist_ok=True)
            warm, files = files_of(case, tiny, scratch / "tiny pairs"), files_of(case, sources, scratch / "pairs")
            for spacing in (None, 1.0):
                lines += table(options, case, warm, files, spacing)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


def configuration(options: argparse.Namespace) -> str:
    """What was run, on what."""
    peers = () if options.peers == "none" else ("nnunetv2", "SimpleITK")
    forms = "phantoms" if options.phantoms else "real patients: 3DIRCADb 1, zipped DICOM, and LiTS 28, .nii.gz"
    return (
        f"`python -m benchmarks.bench_ingest_cost`; {forms}; medians of {options.rounds} interleaved rounds, least to\n"
        "most in brackets. CPU: user and system seconds of the process and its threads without imports and\n"
        "compilation, in a fresh process each, the parts too. Memory: peak above what the process held before.\n"
        "Profile balanced. "
        "The plain way writes the same arrays (HU, labels, packed) with the same codecs and\nchecks nothing; nnU-Net "
        "starts from a .nii.gz pair in either case.\n\n"
        f"{describe('numpy', 'numba', 'zarr', 'nibabel', 'pydicom', *peers)}"
    )


def table(options: argparse.Namespace, case: str, warm: Files, files: Files, spacing: float | None) -> list[str]:
    """One case at one spacing: a row a contestant, then the targets."""
    works = contestants(case, options.peers == "all")
    found: dict[str, list[Cost]] = {name: [] for name in works}
    parts: list[dict[str, float]] = []
    for _ in range(options.rounds):
        for name, work in works.items():
            found[name].append(cost_of(work, warm, files, spacing))
            print(f"{case} {spacing or 'native'} {name}: {found[name][-1]}", file=sys.stderr, flush=True)
        parts.append(parts_of(case, warm, files, spacing))
    title = f"{case}, {'native spacing' if spacing is None else f'{spacing:g} mm in-plane'}"
    rows = ["", f"## {title}", "", "| | CPU s | x ours | wall s | peak GB |", "|---|---|---|---|---|"]
    mine = [cost.cpu_s for cost in found["livprep ingest"]]
    for name, costs in found.items():
        seconds = [cost.cpu_s for cost in costs]
        times = statistics.median(other / own for other, own in zip(seconds, mine, strict=True))
        wall = statistics.median(cost.wall_s for cost in costs)
        peak = statistics.median(cost.peak_bytes for cost in costs) / 1e9
        rows.append(f"| {name} | {spread(seconds)} | {times:.2f} | {wall:.2f} | {peak:.2f} |")
    sums = [sum(entry.values()) for entry in parts]
    share = statistics.median(other / own for other, own in zip(sums, mine, strict=True))
    rows.append(f"| unavoidable parts, summed | {spread(sums)} | {share:.2f} | | |")
    each = ", ".join(f"{name} {statistics.median(entry.get(name, 0) for entry in parts):.3f}" for name in parts[0])
    return [*rows, "", f"Parts (CPU s): {each}.", "", *verdicts(found, sums)]


def verdicts(found: dict[str, list[Cost]], sums: list[float]) -> list[str]:
    """Targets: ours against the parts, nnU-Net, and the cheapest plain way; memory."""
    mine = [cost.cpu_s for cost in found["livprep ingest"]]
    lines = []
    for what, wanted, how in TARGETS:
        if what == "parts":
            value = statistics.median(own / other for own, other in zip(mine, sums, strict=True))
        else:
            rivals = [[cost.cpu_s for cost in costs] for name, costs in found.items() if name.startswith(what)]
            if not rivals:
                continue
            cheapest = min(rivals, key=statistics.median)
            value = statistics.median(other / own for other, own in zip(cheapest, mine, strict=True))
        met = value <= wanted if how == "at most" else value >= wanted
        against = {"parts": "x the unavoidable parts"}.get(what, f"x fewer CPU seconds than the cheapest {what} row")
        reach = ""
        if not met and what != "parts":  # what a program that did the unavoidable parts and nothing else would reach
            best = statistics.median(other / least for other, least in zip(cheapest, sums, strict=True))
            reach = f" (the unavoidable parts alone: {best:.2f} x)"
        lines.append(f"* {value:.2f} {against}, {how} {wanted:g} wanted{'' if met else ': **missed**'}{reach}")
    peak = statistics.median(cost.peak_bytes for cost in found["livprep ingest"]) / 1e9
    missed = "" if peak <= MEMORY_GB else ": **missed**"
    return [*lines, f"* {peak:.2f} GB above the interpreter, at most {MEMORY_GB} wanted (LiTS 28){missed}"]


def spread(values: list[float]) -> str:
    """Median with least and most."""
    return f"**{statistics.median(values):.2f}** ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
