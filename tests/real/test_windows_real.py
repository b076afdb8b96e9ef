"""`livprep window --suggest` on the real patients against the fractions that were measured before any code ran."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from livprep.cohort import IngestRequest, plan_ingest, run_ingest
from livprep.store import open_store
from livprep.suggestion import judge, tally_cohort
from livprep.windows import Window

DATA = Path(os.environ.get("LIVPREP_REAL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not (DATA / "ircadb").is_dir(), reason=f"no real patients at {DATA} (LIVPREP_REAL_DATA)"),
]

BOUNDS_HU = ((-90, 170), (-75, 155), (-40, 160), (-150, 130), (-200, 200), (-45, 105))
FRACTIONS = {  # datasets.md, section D: liver voxels that each window leaves unsaturated
    "ircadb-01": (0.987, 0.971, 0.978, 0.833, 0.997, 0.366),
    "ircadb-07": (0.992, 0.978, 0.985, 0.774, 1.0, 0.125),
}


def test_suggest_agrees_with_the_measured_fractions(tmp_path: Path) -> None:
    store = tmp_path / "liver.zarr"
    list(run_ingest(plan_ingest(IngestRequest((DATA / "ircadb",), store, workers=1))))
    windows = [Window((low + high) / 2, high - low) for low, high in BOUNDS_HU]
    verdicts = {verdict.case: verdict for verdict in judge(tally_cohort(open_store(store)), windows)}
    for case, fractions in FRACTIONS.items():
        found = [row.liver_kept for row in verdicts[case].rows]
        sys.stdout.write(json.dumps({case: [round(value, 4) for value in found]}) + "\n")
        assert found == pytest.approx(fractions, abs=0.01)
