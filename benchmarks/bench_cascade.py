"""What the predicted liver costs the tumor stage: tumor Dice inside it and inside the reference liver, on phantoms.

    python -m benchmarks.bench_cascade [--cases 7] [--size 96] [--seconds 120 300] [--scratch DIR] [--json]

Writes phantoms of both data sets, ingests and windows them, trains the two stages for some seconds each with the
device's preset (the tumor on smaller patches, of which a CPU sees more), and segments the held-out test and validation
patients twice: as `livtrain predict` does, and with the reference in place of the predicted liver, which `predict`
itself never looks at. What a DIR holds already is used again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from livprep.catalog import load_catalog
from livprep.cohort import IngestRequest, plan_ingest, plan_windows, run_ingest, run_windows
from livprep.division import SplitRequest, divide
from livprep.geometry import canonical_axes
from livprep.labels import Label, LabelArray
from livprep.store import Store, open_store
from livprep.synthesis import write_phantoms
from livprep.windows import Window
from livtrain import trainer
from livtrain.checkpoint import load_checkpoint
from livtrain.inference import Predictor, find_scans, load_stage

WANTED_DIFFERENCE = 0.03
TUMOR_SETTINGS = ("patch_zyx=[24,48,48]",)


class KnownLiver(Predictor):
    """The cascade with the reference's liver for the predicted one."""

    reference: LabelArray

    def _first(self, *_: Any) -> LabelArray:
        return (self.reference >= Label.LIVER).astype(np.uint8)


def make_store(folder: Path, cases: int, size: int) -> Store:
    """Phantoms of both data sets, windowed for both stages and divided by patient."""
    path = folder / "liver.zarr"
    if path.exists():
        return open_store(path)
    write_phantoms(folder / "data", "both", cases=cases, seed=1, size=size)
    for name in ("ircadb", "lits"):
        list(run_ingest(plan_ingest(IngestRequest((folder / "data" / name,), path, workers=1))))
    store = open_store(path)
    list(run_windows(store, plan_windows(store, [Window(40, 220), Window(60, 140)]), workers=1))
    divide(SplitRequest(path, val=0.2, test=0.17, seed=0))
    return open_store(path)


def train(store: Store, run: Path, stage: str, seconds: float, assignments: Sequence[str]) -> float | None:
    """Train one stage; its best validation Dice (of a tumor stage: inside the reference liver)."""
    if (run / "summary.json").exists():
        return load_checkpoint(run).progress["best_val_dice"]
    options = {"stage": stage, "time_s": seconds}
    assignments = [*(TUMOR_SETTINGS if stage == "tumor" else ()), *assignments]
    settings, _ = trainer.settings_for_run(run, False, None, None, assignments, options)
    return trainer.fit(store, settings, run).best_val_dice


def dice(p: np.ndarray, r: np.ndarray) -> float | None:
    """Dice; None where the reference has nothing."""
    return 2 * float((p & r).sum()) / float(p.sum() + r.sum()) if r.any() else None


def compare(store: Store, liver: Path, tumor: Path) -> list[dict[str, Any]]:
    """Dice of each held-out case, with the predicted and with the reference liver."""
    stages = [load_stage(liver, ("liver",))], [load_stage(tumor, ("tumor",))]
    split = store.read_split("default")
    assert split is not None
    rows = []
    for case_id in (*split.val, *split.test):
        (scan,), _ = find_scans([case_id], store.path, load_catalog())
        loaded, reference = scan.load(), store[case_id].read_labels()
        known = KnownLiver(*stages)
        known.reference = reference
        axes, _ = canonical_axes(loaded.source)
        row: dict[str, Any] = {"case": case_id}
        for name, predictor in (("predicted", Predictor(*stages)), ("reference", known)):
            labels = axes.apply(predictor.predict(loaded).labels)
            row[f"tumor_dice_{name}_liver"] = dice(labels == Label.TUMOR, reference == Label.TUMOR)
            if name == "predicted":
                row["liver_dice"] = dice(labels >= Label.LIVER, reference >= Label.LIVER)
        rows.append(row)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=7, help="patients of each data set")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--seconds", type=float, nargs=2, default=(120, 300), help="of training: liver, tumor")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--scratch", type=Path, help="folder to work in and keep; by default a temporary one")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.scratch or Path(temporary)
        store = make_store(folder, given.cases, given.size)
        runs = [folder / "runs" / stage for stage in ("liver", "tumor")]
        pairs = zip(runs, given.seconds, strict=True)
        trained = [train(store, run, run.name, seconds, given.assignments) for run, seconds in pairs]
        rows = compare(store, *runs)
    means = {
        name: float(np.mean([row[name] for row in rows if row[name] is not None] or [np.nan]))
        for name in ("liver_dice", "tumor_dice_predicted_liver", "tumor_dice_reference_liver")
    }
    difference = means["tumor_dice_reference_liver"] - means["tumor_dice_predicted_liver"]
    if given.json:
        print(json.dumps({"validation_dice": trained, "cases": rows, "mean": means, "difference": difference}))
        return
    print(f"{describe('torch')}; {given.seconds} s of training, validation Dice {trained}\n")
    print("| case | liver Dice | tumor Dice, predicted liver | tumor Dice, reference liver |\n|---|---|---|---|")
    for row in [*rows, {"case": "mean", **means}]:
        values = [row[name] for name in means]
        print(f"| {row['case']} | " + " | ".join("-" if v is None else f"{v:.4f}" for v in values) + " |")
    print(f"\nThe predicted liver costs {difference:.4f} of tumor Dice, at most {WANTED_DIFFERENCE} wanted.")


if __name__ == "__main__":
    main()
