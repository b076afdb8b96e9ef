"""No text of a patient's header reaches the store, the output or the logs; no name of a source the store."""

from __future__ import annotations

import gzip
import json
import shutil
import stat
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from building import ircadb_case, lits_pair, mask_array, plain_slice, scan, write_series, zip_folder
from conftest import Outcome
from planting import (
    BEHIND,
    Tokens,
    everything_below,
    marked,
    marked_nifti,
    planted_gzip,
    planted_nifti,
    planted_slice,
    planted_zip,
)


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


# --- a token in every place, through every command --------------------------------------------------------------

FAULTS = [
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept",
    "SliceThickness", "SpacingBetweenSlices", "GantryDetectorTilt", "SeriesInstanceUID", "FrameOfReferenceUID",
    "SOPClassUID", "Modality", "SpecificCharacterSet", "NumberOfFrames", "TransferSyntaxUID", "Rows", "BitsAllocated",
    "BitsStored", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation",
    BEHIND,
]  # fmt: skip
"""Elements of one slice that hold a token where the reader needs something else."""
NIFTI_FAULTS = {
    "NIFTI_DIM": {"dim": [4, 5, 6, 4, 2, 1, 1, 1]}, "NIFTI_HEADER": {"datatype": 128},
    "NIFTI_SHORT": {"dim": [3, 9, 9, 9, 1, 1, 1, 1]}, "NIFTI_AFFINE": {"srow_x": [0.7, 0.7, 0, 0]},
    "HU_RANGE": {"scl_slope": 1e9},
}  # fmt: skip
TINY = ("--set", "patch_zyx=[8,8,8]", "--set", "width=2", "--set", "overlap=0", "--set", "train_dice_cases=1")


def planted_case(root: Path, number: int, tokens: Tokens, *, every: bool, fault: str = "") -> Path:
    """A 3DIRCADb case whose slices hold tokens, one slice of the scan at fault."""
    case = ircadb_case(root, number, {"liver": mask_array(1)})
    for folder in (case / "PATIENT_DICOM", case / "MASKS_DICOM" / "liver"):
        for k, path in enumerate(sorted(folder.iterdir())):
            own = fault if k == 1 and folder.name == "PATIENT_DICOM" else ""
            path.write_bytes(planted_slice(path.read_bytes(), tokens, every=every and k == 0, fault=own))
    return case


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:-size])


FILE_FAULTS: dict[str, tuple[int, Callable[[Path], object]]] = {
    "gap": (11, lambda case: (case / "PATIENT_DICOM" / "image_1").unlink()),
    "cut": (11, lambda case: cut(case / "PATIENT_DICOM" / "image_1", 60)),
    "one slice more": (14, lambda case: (case / "MASKS_DICOM" / "liver" / "image_0").unlink()),
    "maskless": (20, lambda case: shutil.rmtree(case / "MASKS_DICOM")),
    "unknown": (77, lambda case: None),
}
"""Faults of files and folders: the patient's number, and what is done to its folder."""


def planted_sources(root: Path, tokens: Tokens) -> None:
    """Whole cases of every kind, and a case for every fault."""
    planted_case(root / "whole", 5, tokens, every=True)
    entries = {}
    for path in sorted(planted_case(root / "zipped", 7, tokens, every=False).rglob("image_*")):
        entries[path.relative_to(root / "zipped").as_posix()] = path.read_bytes()
    shutil.rmtree(root / "zipped")
    (root / "zipped").mkdir()
    planted_zip(root / "zipped" / "cases.zip", entries, tokens)
    for k, fault in enumerate(FAULTS):
        planted_case(root / "faulty" / fault, (11, 14, 20)[k % 3], tokens, every=False, fault=fault)
    for fault, (number, spoil) in FILE_FAULTS.items():
        spoil(planted_case(root / "faulty" / fault, number, tokens, every=False))
    hu, labels = scan().image.hu, scan().label_map.labels
    for number in (3, 6, 8):
        (root / "lits").mkdir(exist_ok=True)
        for name, values in (("volume", hu), ("segmentation", labels)):
            data = planted_nifti(values, tokens)
            (root / "lits" / f"{name}-{number}.nii.gz").write_bytes(planted_gzip(data, tokens))
    for number, (_, fields) in enumerate(NIFTI_FAULTS.items(), 60):
        (root / "lits" / f"volume-{number}.nii").write_bytes(planted_nifti(hu, tokens, **fields))
        (root / "lits" / f"segmentation-{number}.nii").write_bytes(planted_nifti(labels, tokens))
    (root / "lits" / "volume-70.nii.gz").write_bytes(planted_gzip(planted_nifti(hu, tokens), tokens)[:-9])
    (root / "lits" / "segmentation-70.nii").write_bytes(planted_nifti(labels + np.uint8(9), tokens))


def written_text(folders: list[Path]) -> bytes:
    """All that lies below folders, with what is gzipped or zipped inflated too."""
    pieces = []
    for folder in folders:
        pieces.append(everything_below(folder))
        pieces.extend(gzip.decompress(path.read_bytes()) for path in folder.rglob("*.gz"))
    return b"\n".join(pieces)


def test_no_planted_token_comes_out_of_any_command(
    livprep: Callable[..., Outcome],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens, root, work = Tokens(), tmp_path / "in", tmp_path / "work"
    planted_sources(root, tokens)
    assert tokens.count >= 500
    work.mkdir()
    monkeypatch.chdir(work)
    store = work / "liver.zarr"
    told = []

    def call(*line: object, codes: tuple[int, ...] = (0,)) -> Outcome:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            outcome = livprep(*line)
        told.extend([outcome, *(Outcome(0, str(entry.message), "") for entry in caught)])
        assert outcome.code in codes, (line, outcome)
        return outcome

    for source, codes in (("whole", (0,)), ("zipped", (0,)), ("lits", (3,))):
        call("ingest", root / source, "--store", store, "--workers", 1, "-vv", "--json", codes=codes)
    seen_codes = set()
    for fault in (*FAULTS, *FILE_FAULTS):
        outcome = call(
            "ingest",
            root / "faulty" / fault,
            "--store",
            store,
            "--workers",
            1,
            "-vv",
            "--replace",
            "--json",
            codes=(0, 3),
        )
        seen_codes |= {json.loads(line)["code"] for line in outcome.out.splitlines()}
    assert len(seen_codes) >= 8, seen_codes
    for line, codes in (
        (("inspect", root, "--json", "-vv"), (3,)),
        (("inspect", root / "whole"), (0, 3)),
        (("ingest", root, "--store", store, "--dry-run"), (0, 3)),
        (("window", "--wl", 40, "--ww", 220, "--store", store, "-vv"), (0,)),
        (("info", "--store", store, "--json"), (0,)),
        (("info", "lits-003", "--store", store), (0,)),
        (("overlaps", "--store", store, "--json"), (0,)),
        (("split", "--store", store, "--name", "again"), (0,)),
        (("explain", "SERIES_TAG"), (0,)),
        (("verify", "--store", store, "--deep", "--workers", 1, "-vv", "--json"), (0,)),
        (("verify", root / "lits", "--store", store, "--workers", 1, "-vv", "--json"), (0, 4)),
        (("verify", root / "whole", "--store", store, "--workers", 1, "-vv"), (0, 4)),
        (("gc", "--store", store), (0,)),
    ):  # fmt: skip
        call(*line, codes=codes)
    told.extend(train_and_predict(store, root, work))
    seen = written_text([work]) + caplog.text.encode() + "".join(o.out + o.err for o in told).encode()
    assert len(seen) > 100_000
    assert (store / "cases" / "lits-003").is_dir()
    assert (work / "predictions" / "lits-006.nii.gz").is_file()
    assert tokens.found_in(seen) == []


def train_and_predict(store: Path, root: Path, work: Path) -> list[Outcome]:
    """Fit two steps, predict stored cases and sources, evaluate; what was printed."""
    torch = pytest.importorskip("torch")
    from click.testing import CliRunner

    from livcli.livtrain_evaluate import evaluate
    from livcli.livtrain_fit import fit
    from livcli.livtrain_predict import predict

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    told = []
    common = ("--store", store, "--device", "cpu")
    network = ("--liver", work / "runs/liver", *common, "--out")
    for command, line, codes in (
        (fit, (*common, "--steps", 2, *TINY, "-v"), (0,)),
        (predict, (root / "lits", root / "whole", *network, work / "predictions", "--json"), (3,)),
        (predict, (root / "faulty" / "Modality", *network, work / "more"), (0, 3)),
        (predict, ("lits-*", *network, work / "stored"), (0,)),
        (evaluate, ("-p", work / "stored", "--store", store, "--json"), (0,)),
    ):
        result = CliRunner().invoke(command, [str(part) for part in line], standalone_mode=False)
        assert result.exception is None, (command, result.exception, result.output)
        assert result.exit_code in codes or result.return_value in codes, (command, result.output)
        told.append(Outcome(result.exit_code, result.stdout, result.stderr))
    torch.set_num_threads(threads)
    return told


@pytest.mark.parametrize("verbose", [False, True])
def test_a_defect_in_a_command_tells_no_text(
    livprep: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verbose: bool
) -> None:
    from livprep import inspection

    def fail(*arguments: object) -> None:
        try:
            int("TOKEN^cause")
        except ValueError as error:
            raise ZeroDivisionError("TOKEN^Jane") from error

    monkeypatch.setattr(inspection, "discover", fail)
    line = ("inspect", tmp_path, *(["-vv"] if verbose else []))
    outcome = livprep(*line)
    assert outcome.code == 1
    assert "TOKEN" not in outcome.out + outcome.err
    assert "ZeroDivisionError in test_privacy.py, line" in outcome.err
    assert ("Traceback" in outcome.err) == verbose
    monkeypatch.setenv("LIVPREP_DEBUG", "1")
    assert "TOKEN^Jane" in livprep(*line).err
