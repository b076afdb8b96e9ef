"""No text of a patient's header reaches the store, the output or the logs."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from building import ircadb_case, mask_array, nifti_bytes, scan, write_series
from conftest import Outcome
from pydicom.datadict import dictionary_keyword, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

TEXT = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"}
STRUCTURAL = {"Modality", "PhotometricInterpretation", "SpecificCharacterSet"}


def marked(data: bytes, start: int) -> tuple[bytes, list[str]]:
    """A slice with a token of its own in each text element, nested and private ones too, and the tokens."""
    tokens: list[str] = []

    def token() -> str:
        tokens.append(f"TOKEN{start + len(tokens)}X")
        return tokens[-1]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(data))
        tags = [
            tag
            for tag in pydicom.datadict.DicomDictionary
            if (tag >> 16) in (0x0008, 0x0010, 0x0018, 0x0020, 0x0032, 0x0040)
        ]
        for tag in tags:
            keyword = dictionary_keyword(tag)
            if keyword and dictionary_VR(tag) in TEXT and keyword not in STRUCTURAL:
                dataset.add_new(tag, dictionary_VR(tag), token())
        nested = Dataset()
        nested.PatientName = token()
        nested.ReferencedStudySequence = Sequence([Dataset()])
        nested.ReferencedStudySequence[0].StudyDescription = token()
        dataset.RequestAttributesSequence = Sequence([nested])
        block = dataset.private_block(0x0011, token(), create=True)
        block.add_new(0x01, "LO", token())
        block.add_new(0x02, "UN", token().encode())
        dataset.StudyDate = "TOKENDATE"
        tokens.append("TOKENDATE")
        buffer = io.BytesIO()
        dataset.save_as(buffer)
    return buffer.getvalue(), tokens


def everything_below(folder: Path) -> bytes:
    return b"\n".join(bytes(path) + b"\n" + path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("fault", ["none", "short", "gap"])
def test_no_text_of_dicom_goes_anywhere(
    livprep: Callable[..., Outcome], tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    case = ircadb_case(tmp_path / "in", 5, {"liver": mask_array(1)})
    tokens: list[str] = []
    for folder in (case / "PATIENT_DICOM", case / "MASKS_DICOM" / "liver"):
        slices = []
        for path in sorted(folder.iterdir()):
            data, own = marked(path.read_bytes(), len(tokens))
            tokens.extend(own)
            slices.append(data)
        write_series(folder, slices)
    if fault == "short":
        path = case / "PATIENT_DICOM" / "image_1"
        path.write_bytes(path.read_bytes()[:-5])
    elif fault == "gap":
        (case / "PATIENT_DICOM" / "image_1").unlink()
    assert len(set(tokens)) > 500
    store = tmp_path / "store"
    outcomes = [livprep("ingest", tmp_path / "in", "--store", store, "--workers", 1, "-vv", "--json")]
    outcomes.append(livprep("inspect", tmp_path / "in", "--json"))
    outcomes.append(livprep("info", "--json", "--store", store))
    assert [outcome.code for outcome in outcomes] == ([0, 0, 0] if fault == "none" else [3, 3, 0])
    seen = everything_below(store).decode("latin-1") + caplog.text + "".join(o.out + o.err for o in outcomes)
    assert not [token for token in [*set(tokens), "TOKEN"] if token in seen]


@pytest.mark.parametrize("fault", [False, True])
def test_no_text_of_nifti_goes_anywhere(
    livprep: Callable[..., Outcome], tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: bool
) -> None:
    fields = {
        "descrip": b"TOKEN descrip", "aux_file": b"TOKEN aux", "intent_name": b"TOKEN intent", "db_name": b"TOKEN db",
        "data_type": b"TOKEN", "vox_offset": 352 + 64,
    }  # fmt: skip
    (tmp_path / "in").mkdir()
    for name, values in (("volume", scan().image.hu), ("segmentation", scan().label_map.labels)):
        if fault and name == "segmentation":
            values = np.full_like(values, 7)
        data = nifti_bytes(values, fields=fields)
        extension = (64).to_bytes(4, "little") + (6).to_bytes(4, "little") + b"TOKEN comment".ljust(56, b"\0")
        (tmp_path / "in" / f"{name}-3.nii").write_bytes(data[:348] + b"\1\0\0\0" + extension + data[352:])
    store = tmp_path / "store"
    outcomes = [livprep("ingest", tmp_path / "in", "--store", store, "--workers", 1, "-vv", "--json")]
    outcomes.append(livprep("inspect", tmp_path / "in", "--json"))
    assert outcomes[0].code == (3 if fault else 0)
    receipt = json.loads(outcomes[0].out)
    assert receipt["code"] == ("LABEL_UNKNOWN" if fault else "")
    seen = everything_below(store).decode("latin-1") + caplog.text + "".join(o.out + o.err for o in outcomes)
    assert "TOKEN" not in seen
