"""A DICOM segmentation holds the identity that the standard demands of it, and nothing else of its source's headers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from building import edited, plain_slice
from planting import marked

from livprep.cases import FileRef
from livprep.formats.dicom import read_series
from livprep.formats.dicom_seg import COPIED, EMPTY, IDENTIFYING, write_dicom_seg
from livprep.formats.hashing import HashingReader


def test_only_the_demanded_identity_is_copied(tmp_path: Path) -> None:
    """Every other element that a header may hold gets a token; none of them reaches the file."""
    pytest.importorskip("highdicom")
    refs, tokens = [], []
    for k in range(4):
        data, own = marked(plain_slice(k), 1000 * k)
        demanded = {
            "PatientID": "P1",
            "StudyInstanceUID": "1.2.3",
            "SeriesInstanceUID": "1.2.4",
            "FrameOfReferenceUID": "1.2.5",
            "SOPInstanceUID": f"1.2.6.{k}",
        }
        (tmp_path / f"image_{k}").write_bytes(edited(data, **demanded))
        refs.append(FileRef(str(tmp_path / f"image_{k}")))
        tokens += own
    labels = np.zeros((4, 6, 5), dtype=np.uint8)
    labels[1:3, 2:5, 1:3] = 1
    geometry = read_series(HashingReader(), "image", refs).geometry
    write_dicom_seg(tmp_path / "seg.dcm", labels, geometry, refs)
    content = (tmp_path / "seg.dcm").read_bytes()
    assert len(tokens) > 500
    assert [token for token in [*tokens, "TOKEN"] if token.encode() in content] == []
    dataset = pydicom.dcmread(io.BytesIO(content))
    assert [dataset.PatientID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID] == ["P1", "1.2.3", "1.2.5"]
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.4"
    assert dataset.SeriesInstanceUID != "1.2.4"
    assert all(not dataset.get(name) for name in EMPTY)
    assert set(IDENTIFYING) < set(COPIED)
