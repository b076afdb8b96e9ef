"""The challenge's scorer, number for number: three data sets with what it prints for each, to 9 digits."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from livtrain.evaluate import evaluate_folder

DATA = Path(os.environ.get("LIVPREP_REAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
SETS = DATA / "lits_scoring"


@pytest.mark.real
@pytest.mark.skipif(not SETS.is_dir(), reason="LIVPREP_REAL_DATA holds no lits_scoring")
@pytest.mark.parametrize("name", ["A1", "A2", "A3"])
def test_scores_equal_the_challenges_own_to_nine_digits(name: str) -> None:
    expected = json.loads((SETS / name / "expected.json").read_text())
    found = evaluate_folder(SETS / name / "res", [SETS / name / "ref"])
    assert list(found.lits) == list(expected)
    # A value printed with 9 digits lies within half of the last one.
    assert found.lits == pytest.approx(expected, rel=0, abs=0.6e-9)
    assert len(found.cases) == len(list((SETS / name / "ref").iterdir()))
