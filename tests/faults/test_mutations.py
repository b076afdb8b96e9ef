"""Damaged inputs of every reader, by the ten thousand: read or refused with a code, in bounded time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from livprep.errors import CODES

CI_COUNT = 20_000
COUNT, PARTS = int(os.environ.get("LIVPREP_MUTATIONS", "4000")), 2
"""Inputs of a reader. CI asks for `CI_COUNT` in a step of its own, and every night there are ten times as many."""
READERS = ("dicom", "nifti", "archive", "catalog")
ONCE_FAILED = {
    "nifti": (25, 222, 1245, 4849),
    "archive": (9, 59, 219, 390, 37934),
    "catalog": (71, 81, 120, 527, 964, 2522, 11623),
}
"""Numbers of inputs that once ended otherwise than with a code, or took the memory."""
PREFIXES = {
    "dicom": ("DICOM_", "SERIES_", "PIXELDATA_", "HU_"),
    "nifti": ("GZIP_", "NIFTI_", "HU_", "LABEL_"),
    "archive": ("ARCHIVE_", "SOURCE_MISSING"),
    "catalog": ("CATALOG_INVALID",),
}
GROWTH_MB = 256
"""More memory than this for inputs of some kilobytes means that one of them was believed."""


def read_damaged(reader: str, *numbers: str) -> dict[str, Any]:
    """What came of inputs, read in a process with 1 GB more than it starts with; see mutation_worker.py."""
    here = Path(__file__)
    path = os.pathsep.join([str(here.parents[1]), str(here.parents[2]), os.environ.get("PYTHONPATH", "")])
    outcome = subprocess.run(
        [sys.executable, str(here.with_name("mutation_worker.py")), reader, *numbers],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, f"{reader} {numbers}: ended with {outcome.returncode}\n{outcome.stderr[-4000:]}"
    result: dict[str, Any] = json.loads(outcome.stdout)
    return result


def check(reader: str, result: dict[str, Any]) -> None:
    failures = result["failures"]
    again = f"PYTHONPATH=tests python tests/faults/mutation_worker.py {reader} {failures[0][0] if failures else ''}"
    assert not failures, f"{len(failures)} inputs failed; alone: {again}\n{failures[0]}"
    odd = {code for code in result["outcomes"] if code and not code.startswith(PREFIXES[reader])}
    assert not odd, result["outcomes"]
    assert result["outcomes"].keys() - {""} <= CODES.keys()
    assert result["grown_mb"] < GROWTH_MB


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("reader", READERS)
def test_damaged_inputs_are_read_or_refused(reader: str, part: int) -> None:
    size = COUNT // PARTS
    result = read_damaged(reader, f"{part * size}:{(part + 1) * size}")
    check(reader, result)
    outcomes = result["outcomes"]
    assert sum(outcomes.values()) == size
    # The damage must reach beyond the first check, and not always hit what matters.
    assert outcomes[""] > size // 50
    assert len(outcomes) > (1 if reader == "catalog" else 2)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("reader", READERS)
def test_ten_times_as_many(reader: str) -> None:
    check(reader, read_damaged(reader, f"{CI_COUNT}:{10 * CI_COUNT}"))


@pytest.mark.parametrize("reader", ONCE_FAILED)
def test_inputs_that_once_failed(reader: str) -> None:
    check(reader, read_damaged(reader, *map(str, ONCE_FAILED[reader])))


def test_all_forms_of_dicom_and_nifti_are_damaged() -> None:
    assert set(read_damaged("dicom", "0")["forms"]) >= {
        "explicit", "implicit", "big endian", "deflated", "RLE", "multi-frame", "multi-frame RLE", "JPEG 2000"
    }  # fmt: skip
    assert set(read_damaged("nifti", "0")["forms"]) >= {"nii", "nii.gz", "nii, big endian", "nii, version 2"}
