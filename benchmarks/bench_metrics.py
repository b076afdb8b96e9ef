"""Processor time of scoring one case: livtrain against the challenge's own method, written out.

    python -m benchmarks.bench_metrics [--size 512] [--slices 300] [--rounds 3] [--markdown FILE]

The method: surface voxels by erosion of the whole volume with the full 18-neighborhood element, a k-d tree over the
surface voxels of each mask, for the liver and again for every detected lesion; components labelled over the whole
volume. Both run on one core in turns on a phantom and a prediction made from it, and must give equal numbers.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from benchmarks.machine import describe
from livprep.phantom import Findings, make_phantom
from livtrain.evaluate import score_case
from livtrain.metrics import score_masks
from livtrain.metrics.lesions import detect

Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]
Spacing = tuple[float, float, float]


def surface_points(mask: Mask, spacing_mm: Spacing) -> npt.NDArray[np.float64]:
    """Positions in mm of the surface voxels, from the whole volume."""
    eroded = ndimage.binary_erosion(mask, ndimage.generate_binary_structure(3, 2))
    return np.argwhere(mask & ~eroded) * np.array(spacing_mm)


def plain_distances(p: Mask, r: Mask, spacing_mm: Spacing) -> dict[str, float]:
    """ASSD, RMSD and MSD by k-d trees over whole volumes."""
    points_p, points_r = surface_points(p, spacing_mm), surface_points(r, spacing_mm)
    there, back = cKDTree(points_r).query(points_p)[0], cKDTree(points_p).query(points_r)[0]
    count = len(there) + len(back)
    return {
        "assd": (there.sum() + back.sum()) / count,
        "rmsd": math.sqrt(((there**2).sum() + (back**2).sum()) / count),
        "msd": max(there.max(), back.max()),
    }


def plain_scores(p: Mask, r: Mask, spacing_mm: Spacing) -> dict[str, float]:
    """The scorer's seven numbers of one mask."""
    both, size_p, size_r = int((p & r).sum()), int(p.sum()), int(r.sum())
    jaccard = both / int((p | r).sum())
    overlap = {"dice": 2 * both / (size_p + size_r), "jaccard": jaccard, "voe": 1 - jaccard}
    return {**overlap, "rvd": (size_r - size_p) / size_p, **plain_distances(p, r, spacing_mm)}


def plain_case(p: Labels, r: Labels, spacing_mm: Spacing) -> list[dict[str, float]]:
    """The liver's numbers, then those of each detected lesion."""
    # Numbered along the first axis of the file, as the scorer does, so that lesions come in one order.
    parts_p, parts_r = (ndimage.label((labels == 2).T)[0].T for labels in (p, r))
    columns = int(parts_r.max()) + 1
    joint = (parts_p.astype(np.int64) * columns + parts_r).ravel()
    table = np.bincount(joint, minlength=(int(parts_p.max()) + 1) * columns).reshape(-1, columns)
    found = [plain_scores(p >= 1, r >= 1, spacing_mm)]
    detection = detect(table, 0.5)
    for mine, theirs in detection.pairs if detection.tp > 0 else ():
        found.append(plain_scores(np.isin(parts_p, mine), np.isin(parts_r, theirs), spacing_mm))
    return found


def our_case(p: Labels, r: Labels, spacing_mm: Spacing) -> list[dict[str, float]]:
    """The same from livtrain, which computes the other conventions besides."""
    scores = score_case("bench", p, r, spacing_mm)
    return [scores.liver.as_dict(), *(lesion.as_dict() for lesion in scores.lits.lesions)]


def make_pair(size: int, slices: int) -> tuple[Labels, Labels, Spacing]:
    """A prediction, its reference and the spacing: a phantom with eight tumors, and the same moved by about a voxel."""
    spacing_mm = (300.0 / slices, 384.0 / size, 384.0 / size)
    findings = Findings(tumors=8, tumor_fraction=0.08)
    reference = make_phantom((slices, size, size), spacing_mm, patient="bench", seed=0, findings=findings).labels()
    liver = np.roll(reference > 0, (1, 2, -2), (0, 1, 2))
    tumor = ndimage.binary_dilation(np.roll(reference == 2, (1, -1, 1), (0, 1, 2))) & liver
    prediction = liver.astype(np.uint8)
    prediction[tumor] = 2
    return prediction, reference, spacing_mm


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of a call, and what it returned."""
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


def compare(size: int, slices: int, rounds: int) -> list[str]:
    """The measured table as Markdown rows."""
    p, r, spacing_mm = make_pair(size, slices)
    our_case(p[: slices // 2], r[: slices // 2], spacing_mm)  # compiles the loops
    masks = p > 0, r > 0
    jobs = {
        "the liver": (
            lambda: [plain_scores(*masks, spacing_mm)],
            lambda: [score_masks(*masks, spacing_mm).as_dict()],
        ),
        "the whole case": (lambda: plain_case(p, r, spacing_mm), lambda: our_case(p, r, spacing_mm)),
    }
    rows = [
        "| | the challenge's method, CPU s | livtrain, CPU s | faster | largest difference |",
        "|---|---|---|---|---|",
    ]
    for name, (theirs, ours) in jobs.items():
        turns = [(seconds(theirs), seconds(ours)) for _ in range(rounds)]
        expected, found = turns[0][0][1], turns[0][1][1]
        if len(expected) != len(found):
            raise SystemExit(f"{name}: {len(expected)} scored masks against {len(found)}")
        apart = max(
            abs(mine[key] - value)
            for wanted, mine in zip(expected, found, strict=True)
            for key, value in wanted.items()
        )
        if apart > 1e-9:
            raise SystemExit(f"{name}: the numbers differ by {apart}")
        old, new = (median(turn[side][0] for turn in turns) for side in (0, 1))
        ratio = median(turn[0][0] / turn[1][0] for turn in turns)
        rows.append(f"| {name} ({len(found)} masks) | {old:.2f} | {new:.2f} | {ratio:.1f} × | {apart:.0e} |")
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="pixels in plane")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3, help="turns of both; the median counts")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here too")
    options = parser.parse_args()
    rows = compare(options.size, options.slices, options.rounds)
    about = describe("numpy", "scipy", "numba")
    print("\n".join([*rows, "", about]))
    if options.markdown:
        options.markdown.write_text(
            f"# Scoring one case of {options.size} × {options.size} × {options.slices} voxels\n\n"
            "`python -m benchmarks.bench_metrics`: a phantom with eight tumors against itself moved by about a voxel;\n"
            "processor seconds, both in turns, median of the turns. The challenge's method is written out in the\n"
            "benchmark: surfaces by erosion of whole volumes, k-d trees. livtrain computes HD95, surface Dice, rates\n"
            "and lesions by size besides.\n\n" + "\n".join(rows) + f"\n\n{about}\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
