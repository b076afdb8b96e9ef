"""No text of a patient's header reaches the store, the output or the logs; no name of a source the store."""

from __future__ import annotations

import io
import json
import stat
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from building import ircadb_case, lits_pair, mask_array, nifti_bytes, plain_slice, scan, write_series, zip_folder
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


def marked_nifti(values: np.ndarray, affine_ras: np.ndarray | None = None) -> bytes:
    """A NIfTI with TOKEN in every text field of its header and in an extension."""
    fields = {
        "descrip": b"TOKEN descrip", "aux_file": b"TOKEN aux", "intent_name": b"TOKEN intent", "db_name": b"TOKEN db",
        "data_type": b"TOKEN", "vox_offset": 352 + 64,
    }  # fmt: skip
    data = nifti_bytes(values, affine_ras, fields)
    extension = (64).to_bytes(4, "little") + (6).to_bytes(4, "little") + b"TOKEN comment".ljust(56, b"\0")
    return data[:348] + b"\1\0\0\0" + extension + data[352:]


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
    (tmp_path / "in").mkdir()
    for name, values in (("volume", scan().image.hu), ("segmentation", scan().label_map.labels)):
        if fault and name == "segmentation":
            values = np.full_like(values, 7)
        (tmp_path / "in" / f"{name}-3.nii").write_bytes(marked_nifti(values))
    store = tmp_path / "store"
    outcomes = [livprep("ingest", tmp_path / "in", "--store", store, "--workers", 1, "-vv", "--json")]
    outcomes.append(livprep("inspect", tmp_path / "in", "--json"))
    assert outcomes[0].code == (3 if fault else 0)
    receipt = json.loads(outcomes[0].out)
    assert receipt["code"] == ("LABEL_UNKNOWN" if fault else "")
    seen = everything_below(store).decode("latin-1") + caplog.text + "".join(o.out + o.err for o in outcomes)
    assert "TOKEN" not in seen


# --- names of files and folders ---------------------------------------------------------------------------------


def marked_series(folder: Path, slices: list[bytes], tokens: list[str]) -> None:
    """Slices with a token in each text element and SECRET in each file name."""
    folder.mkdir(parents=True)
    for k, data in enumerate(slices):
        changed, own = marked(data, len(tokens))
        tokens.extend(own)
        (folder / f"SECRET_{k}").write_bytes(changed)


def marked_sources(root: Path, tokens: list[str]) -> Path:
    """Cases of every kind, whole and faulty, with SECRET in every name that is free; returns their catalogue."""
    patient = root / "SECRET_a" / "3Dircadb1.5" / "SECRET_b"
    marked_series(patient / "PATIENT_DICOM" / "SECRET_c", [plain_slice(k) for k in range(4)], tokens)
    for name in ("liver", "SECRET_mask", "leftsurretumor"):
        mask = mask_array(1)
        marked_series(patient / "MASKS_DICOM" / name, [plain_slice(k, mask[k]) for k in range(4)], tokens)
    marked_series(root / "SECRET_nobody" / "PATIENT_DICOM", [plain_slice(0)], tokens)
    marked_series(root / "SECRET_maskless" / "3Dircadb1.6" / "PATIENT_DICOM", [plain_slice(0)], tokens)
    (root / "SECRET.zip").write_bytes(b"PK")
    hu, labels = scan().image.hu, scan().label_map.labels
    for place, names in {
        "SECRET_lits": ("volume-3", "segmentation-3"),
        "SECRET_cut": ("volume-4", "segmentation-4"),
        "SECRET_alone": ("volume-5",),
    }.items():
        (root / place).mkdir()
        for name in names:
            data = marked_nifti(labels if name.startswith("seg") else hu)
            (root / place / f"{name}.nii").write_bytes(data[:-1] if place == "SECRET_cut" else data)
    for place, name, values in (
        ("imagesTr", "liver_6", hu),
        ("labelsTr", "liver_6", labels),
        ("imagesTs", "liver_140", hu),
    ):
        (root / "SECRET_msd" / place).mkdir(parents=True)
        (root / "SECRET_msd" / place / f"{name}.nii").write_bytes(marked_nifti(values))
    marked_series(root / "SECRET_own" / "SECRET_ct", [plain_slice(k) for k in range(4)], tokens)
    affine = np.diag([-0.7, -0.8, 2.0, 1.0])
    (root / "SECRET_own" / "SECRET_seg.nii").write_bytes(marked_nifti(labels, affine))
    (root / "SECRET_own" / "SECRET_moved.nii").write_bytes(marked_nifti(labels))
    own = [
        {
            "case": name,
            "image": "SECRET_own/SECRET_ct",
            "label": f"SECRET_own/SECRET_{label}.nii",
            "label_map": {1: "liver", 2: "tumor"},
        }
        for name, label in (("own-1", "seg"), ("own-2", "moved"), ("own-3", "nowhere"))
    ]
    path = root / "SECRET.yaml"
    path.write_text(json.dumps({"schema": 1, "own": own}))
    return path


def test_no_name_of_a_source_goes_into_the_store(
    livprep: Callable[..., Outcome], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens: list[str] = []
    root, store, private = tmp_path / "SECRET_root", tmp_path / "store", tmp_path / "map.jsonl"
    catalog = marked_sources(root, tokens)
    assert len(set(tokens)) > 500
    ingest = ("ingest", root, "--store", store, "--catalog", catalog, "--workers", 1)
    first = livprep(*ingest, "-vv", "--json")
    receipts = {record["case"]: record for record in map(json.loads, first.out.splitlines())}
    assert {name: record["code"] for name, record in receipts.items() if record["status"] == "rejected"} == {
        "SECRET": "ARCHIVE_BAD", "SECRET_nobody": "CASE_UNKNOWN", "ircadb-06": "MASK_MISSING",
        "lits-004": "NIFTI_SHORT", "lits-005": "MASK_MISSING", "own-2": "MASK_GEOMETRY", "own-3": "SOURCE_MISSING",
    }  # fmt: skip
    stored = ["ircadb-05", "lits-003", "lits-006", "own-1"]
    assert sorted(name for name, record in receipts.items() if record["status"] == "published") == stored
    # The user is told the names; the store is not.
    assert any("(SECRET_mask)" in warning for warning in receipts["ircadb-05"]["warnings"])
    assert "SECRET_cut" in receipts["lits-004"]["detail"]
    outcomes = [first]
    for line, code in (
        (ingest, 3),
        ((*ingest, "--private-map", private, "--dry-run"), 3),
        ((*ingest, "--private-map", private, "--replace"), 3),
        (("window", "--wl", 40, "--ww", 220, "--store", store), 0),
        (("split", "--store", store), 0),
        (("overlaps", "--store", store), 0),
        (("info", "--store", store), 0),
        (("info", "--store", store, "--json"), 0),
        (("info", "ircadb-05", "--store", store), 0),
        (("verify", "--store", store, "--deep", "--workers", 1, "-vv"), 0),
        (
            ("verify", root, "--store", store, "--catalog", catalog, "--workers", 1, "-vv", "--json"),
            4,
        ),  # two not stored
        (("inspect", root, "--json", "-vv"), 3),
        (("gc", "--store", store), 0),
    ):
        outcomes.append(livprep(*line))
        assert outcomes[-1].code == code, (line, outcomes[-1])
    held = everything_below(store).decode("latin-1")
    assert "SECRET" not in held
    seen = held + caplog.text + "".join(outcome.out + outcome.err for outcome in outcomes)
    assert not [token for token in [*set(tokens), "TOKEN"] if token in seen]
    events = [json.loads(line) for path in (store / "journal").iterdir() for line in path.read_text().splitlines()]
    rejected = [event for event in events if event.get("status") == "rejected"]
    assert {(event["case"], event["code"]) for event in rejected} >= {("", "ARCHIVE_BAD"), ("lits-004", "NIFTI_SHORT")}
    assert {event["detail"] for event in rejected} == {""}
    assert [json.loads(line)["case"] for line in private.read_text().splitlines()] == sorted(
        [*stored, "lits-004", "own-2"]
    )


# --- the private map --------------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    lits_pair(tmp_path / "in" / "lits", 3)
    ircadb_case(tmp_path / "in" / "ircadb", 5, {"liver": mask_array(1)})
    zip_folder(tmp_path / "in" / "ircadb" / "3Dircadb1.5" / "PATIENT_DICOM")
    return tmp_path / "in"


def test_the_private_map_names_the_sources_for_its_owner_alone(
    livprep: Callable[..., Outcome], sources: Path, tmp_path: Path
) -> None:
    private, line = tmp_path / "map.jsonl", ("--store", tmp_path / "store", "--private-map", tmp_path / "map.jsonl")
    assert livprep("ingest", sources / "lits", *line).code == 0
    private.chmod(0o644)
    assert livprep("ingest", sources / "ircadb", *line).code == 0
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    case = sources / "ircadb" / "3Dircadb1.5"
    assert [json.loads(line) for line in private.read_text().splitlines()] == [
        {"case": "ircadb-05", "paths": [f"{case}/MASKS_DICOM/liver", f"{case}/PATIENT_DICOM.zip!/PATIENT_DICOM"]},
        {"case": "lits-003", "paths": [f"{sources}/lits/segmentation-3.nii", f"{sources}/lits/volume-3.nii"]},
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "map.jsonl", "store"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("store/map.jsonl", "lies inside the store"),
        ("store/cases/../map.jsonl", "lies inside the store"),
        ("link/map.jsonl", "lies inside the store"),
        ("nowhere/map.jsonl", "there is no folder"),
        ("thesis.txt", "holds something else"),
        ("list.json", "holds something else"),
    ],
)
def test_a_private_map_in_the_wrong_place_is_refused_before_any_work(
    livprep: Callable[..., Outcome], sources: Path, tmp_path: Path, where: str, message: str
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "store")
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "list.json").write_text("[1]")
    outcome = livprep("ingest", sources, "--store", tmp_path / "store", "--private-map", tmp_path / where)
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "store").exists()
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_defect_tells_its_place_and_no_text(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from livprep import convert

    def fail(job: object) -> None:
        raise ZeroDivisionError("Doe^Jane")

    class Job:
        name = "ircadb-05"

    monkeypatch.setattr(convert, "_ingest", fail)
    caplog.set_level("DEBUG")
    receipt = convert.ingest_case(Job())  # type: ignore[arg-type]
    assert (receipt.code, "Doe" in receipt.detail, "Doe" in caplog.text.replace('("Doe^Jane")', "")) == (
        "INTERNAL",
        False,
        False,
    )
    assert "ZeroDivisionError" in caplog.text
