"""Make a golden store of the current version: `python tests/golden/make_golden.py`, once, before it is released.

Synthetic patients only: a labelled one with two channels, an unlabelled one, a split; zipped to stay small. Stores of
released versions are never made again; tests read them as they are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from livprep.cohort import IngestRequest, plan_ingest, plan_windows, run_ingest, run_windows
from livprep.division import SplitRequest, divide
from livprep.formats.nifti import write_nifti
from livprep.labels import Label
from livprep.phantom import make_phantom
from livprep.schema import SCHEMA_VERSION
from livprep.store import CaseStore, open_store
from livprep.synthesis import write_lits
from livprep.windows import Window

HERE = Path(__file__).resolve().parent


def make(folder: Path) -> None:
    """Write `store` and `expected.json` into a new folder."""
    store = folder / "store"
    with tempfile.TemporaryDirectory() as temporary:
        sources = Path(temporary) / "in"
        write_lits(sources, [28], seed=1, size=24)
        phantom = make_phantom((8, 16, 16), (24.0, 24.0, 24.0), patient="unlabelled", seed=1)
        write_nifti(sources / "test-volume-3.nii", phantom.hu, phantom.geometry)
        list(run_ingest(plan_ingest(IngestRequest((sources,), store, workers=1))))
    opened = open_store(store)
    for window, pattern in ((Window(40, 220), "*"), (Window(60, 140, "lesion"), "lits-*")):
        list(run_windows(opened, plan_windows(opened, [window], pattern), workers=1))
    divide(SplitRequest(store))
    for name in ("journal", ".staging"):
        shutil.rmtree(store / name)
    cases = {name: facts(case) for name, case in opened.items()}
    text = json.dumps({"schema_version": SCHEMA_VERSION, "cases": cases}, indent=1, sort_keys=True)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")


def facts(case: CaseStore) -> dict[str, object]:
    """What reading a case must give, whatever version reads it."""
    arrays = {"hu": case.read_hu(), "packed": case.read_packed()}
    arrays |= {name: case.read_window(name) for name in case.window_names}
    if case.has_labels:
        arrays |= {"labels": case.read_labels()} | {label.name: case.class_points(label) for label in Label}
    hashes = {
        name: hashlib.sha256(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()
        for name, array in arrays.items()
    }
    return {
        "arrays": hashes,
        "shape_zyx": list(case.shape_zyx),
        "spacing_mm": list(case.geometry.spacing_mm),
        "patient": case.patient,
        "fingerprint": case.fingerprint,
        "label_counts": case.label_counts,
        "windows": [[window.name, window.center_hu, window.width_hu] for window in case.windows],
        "repairs": case.meta.repairs,
    }


def packed(folder: Path, archive: Path) -> None:
    """Zip a folder; the bytes follow from its files alone."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            info = zipfile.ZipInfo(path.relative_to(folder).as_posix(), (2026, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(info, path.read_bytes())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        make(Path(made))
        packed(Path(made), HERE / f"schema{SCHEMA_VERSION}.zip")
