"""Named faults of sources, and what the readers say of each: one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import corpus_dicom as dcm
import corpus_files as files
import numpy as np
import pytest
from building import nifti_bytes, plain_slice

from livprep.catalog import Catalog, load_catalog
from livprep.errors import CODES, GeometryError, SourceError
from livprep.inspection import inspect_sources
from livprep.sources import discover, read_case

Status = Literal["ok", "warning", "rejected", "ignored"]


@dataclass(frozen=True)
class Fault:
    """How to build a faulty source, and what must be said of it."""

    name: str
    build: dcm.Build
    status: Status
    code: str = ""


def rejected(name: str, code: str, build: dcm.Build) -> Fault:
    return Fault(name, build, "rejected", code)


def warned(name: str, code: str, build: dcm.Build) -> Fault:
    return Fault(name, build, "warning", code)


def frames_cut(data: Any) -> None:
    data.PixelData = data.PixelData[:-200]


def zoomed(matrix: np.ndarray) -> None:
    matrix[0, 0] = 1.4


def shear(matrix: np.ndarray) -> None:
    matrix[0, 1] = 0.3


def shifted_far(matrix: np.ndarray) -> None:
    matrix[2, 3] = np.nan


SERIES = [
    *(rejected(name, code, build) for name, (build, code) in dcm.TEN.items()),
    rejected("one inner slice missing", "SERIES_GAP", dcm.drop(4)),
    rejected("first slice missing", "SERIES_INCOMPLETE", dcm.drop(0)),
    rejected("every second slice missing", "SERIES_INCOMPLETE", dcm.drop(*range(1, dcm.COUNT, 2))),
    rejected("thick and thin slices", "SERIES_GAP", dcm.moved(lambda k: (0.0, 0.0, 1.5 * max(0, k - 5)))),
    rejected("one slice too high", "SERIES_SHIFT", dcm.moved(lambda k: (0.0, 0.0, 1.0 if k == 5 else 0.0))),
    rejected("last slice too high", "SERIES_SHIFT", dcm.moved(lambda k: (0.0, 0.0, 1.0 if k == 11 else 0.0))),
    rejected("two phases in one series", "SERIES_DUPLICATE",
             dcm.changed(lambda s: s.extend([dcm.plain(k) for k in range(dcm.COUNT)]))),
    warned("two phases with a number each", "SERIES_PHASES", dcm.phases("AcquisitionNumber")),
    warned("two times with a number each", "SERIES_PHASES", dcm.phases("TemporalPositionIdentifier")),
    rejected("a slice again and again", "SERIES_DUPLICATE", dcm.changed(
        lambda s: [dcm.put(d, ImagePositionPatient=[0, 0, 0], AcquisitionNumber=k) for k, d in enumerate(s)])),
    Fault("positions to a tenth of a millimeter", dcm.positioned(lambda k: round(0.625 * k, 1)), "ok"),
    rejected("a slice missing at such positions", "SERIES_GAP",
             dcm.positioned(lambda k: round(0.625 * (k + (k > 5)), 1))),
    Fault("spread over folders", dcm.foldered(lambda k: f"DIR{k // 5}"), "ok"),
    Fault("a folder for each slice", dcm.foldered(lambda k: f"slice{k}"), "ok"),
    warned("spread over folders with a gap", "SERIES_SPREAD", dcm.foldered(lambda k: f"DIR{k // 5}", without=(4,))),
    warned("copied to another folder", "SERIES_SPREAD", dcm.backed_up),
    Fault("modality empty", dcm.every(Modality=""), "ok"),
    warned("lossy by its header", "SERIES_LOSSY", dcm.every(LossyImageCompression="01")),
    Fault("lossless by its header", dcm.every(LossyImageCompression="00"), "ok"),
    warned("JPEG 2000 that may be lossy", "SERIES_LOSSY", dcm.jpeg_2000(1.0, "1.2.840.10008.1.2.4.91")),
    Fault("protocol stored as CT", dcm.changed(lambda s: s.__setitem__(slice(None), [dcm.protocol()])), "ignored"),
    rejected("other slope", "SERIES_RESCALE", dcm.one(RescaleSlope="2")),
    rejected("rescale lost in one slice", "SERIES_RESCALE", dcm.one(RescaleSlope=None, RescaleIntercept=None)),
    warned("other rescale of other values", "SERIES_RESCALE_VARIES", dcm.changed(dcm.legal_rescale)),
    rejected("slope 0", "SERIES_TAG", dcm.one(RescaleSlope="0")),
    rejected("intercept beyond int16", "HU_RANGE", dcm.every(RescaleIntercept="40000")),
    warned("no rescale at all", "HU_NO_AIR", dcm.every(RescaleSlope=None, RescaleIntercept=None)),
    warned("intercept lost", "HU_UNSHIFTED", dcm.every(RescaleIntercept="0")),
    warned("intercept applied twice", "HU_TISSUE", dcm.every(RescaleIntercept="-2048")),
    warned("slope halved", "HU_TISSUE", dcm.every(RescaleSlope="0.5")),
    rejected("patient moved between slices", "SERIES_FRAME_OF_REFERENCE", dcm.one(FrameOfReferenceUID="2.25.9")),
    rejected("one slice of MR", "SERIES_GAP", dcm.one(Modality="MR")),
    warned("numbers with a gap", "SERIES_NUMBERING", dcm.one(11, InstanceNumber=40)),
    warned("part of a counted series", "SERIES_COUNT",
           dcm.changed(lambda s: [dcm.put(d, InstanceNumber=286 - k, ImagesInAcquisition=400)
                                  for k, d in enumerate(s)])),
    Fault("numbers from anywhere", dcm.changed(
        lambda s: [dcm.put(d, InstanceNumber=286 - k, ImagesInAcquisition=None) for k, d in enumerate(s)]), "ok"),
    Fault("two acquisitions", dcm.acquired((6, 6)), "ok"),
    Fault("two acquisitions that count the series", dcm.acquired((12, 12)), "ok"),
    rejected("last slice of the second acquisition missing", "SERIES_INCOMPLETE", dcm.acquired((6, 6), 11)),
    rejected("first slices of the first acquisition missing", "SERIES_INCOMPLETE", dcm.acquired((6, 6), 0)),
    warned("acquisitions of more images than the series", "SERIES_COUNT", dcm.acquired((40, 60))),
    rejected("series counted and one lost", "SERIES_INCOMPLETE", dcm.changed(
        lambda s: [dcm.put(d, ImagesInAcquisition=None, NumberOfSeriesRelatedInstances=13) for d in s])),
    rejected("effective atomic numbers", "SERIES_RESCALE_TYPE", dcm.every(RescaleType="Z_EFF")),
    warned("unit left open", "SERIES_RESCALE_UNIT", dcm.every(RescaleType="US")),
    warned("monoenergetic HU", "SERIES_RESCALE_UNIT", dcm.every(RescaleType="HU_MOD")),
    Fault("HU by name", dcm.every(RescaleType="HU"), "ok"),
    warned("tilt stated, slices straight", "SERIES_TILT_STATED", dcm.every(GantryDetectorTilt="12")),
    warned("localizer among the slices", "SERIES_LOCALIZER", dcm.changed(lambda s: s.append(dcm.localizer(0)))),
    Fault("localizers alone", dcm.changed(lambda s: s.__setitem__(slice(None), [dcm.localizer(0)])), "ignored"),
    Fault("screen capture beside", dcm.changed(lambda s: s.__setitem__(slice(None), [dcm.capture()])), "ignored"),
    warned("padding outside the circle", "SERIES_PADDING", dcm.changed(dcm.padded)),
    Fault("rubbish above 12 bits", dcm.changed(dcm.garbage_bits), "ok"),
    rejected("more bits stored than allocated", "PIXELDATA_BITS", dcm.one(BitsStored=17, HighBit=16)),
    rejected("high bit below the stored bits", "PIXELDATA_BITS", dcm.one(BitsStored=12, HighBit=3)),
    rejected("32 bits", "SERIES_TAG", dcm.one(BitsAllocated=32)),
    rejected("color", "SERIES_TAG", dcm.one(SamplesPerPixel=3)),
    rejected("position missing", "SERIES_TAG", dcm.one(ImagePositionPatient=None)),
    rejected("orientation empty", "SERIES_TAG", dcm.one(ImageOrientationPatient="")),
    rejected("orientation not square", "SERIES_TAG", dcm.every(ImageOrientationPatient=[1, 0, 0, 1, 0, 0])),
    rejected("spacing not finite", "SERIES_TAG", dcm.one(PixelSpacing=["nan", "0.8"])),
    rejected("spacing 0", "SERIES_TAG", dcm.every(PixelSpacing=[0, 0.8])),
    rejected("rows beyond any scanner", "SERIES_TAG", dcm.one(Rows=60000)),
    rejected("single slice without extent", "SERIES_TAG",
             dcm.changed(lambda s: (s.__setitem__(slice(None), s[:1]),
                                    dcm.put(s[0], SliceThickness="", ImagesInAcquisition=None)))),
    rejected("pixel data missing", "PIXELDATA_MISSING", dcm.one(PixelData=None)),
    rejected("header cut", "DICOM_UNREADABLE", dcm.cut(lambda size: 700)),
    rejected("inflates without end", "DICOM_SYNTAX", dcm.changed(dcm.bomb)),
    rejected("compression of a film", "DICOM_SYNTAX", dcm.compressed(dcm.MPEG_2, lambda frame: frame)),
    rejected("RLE cut", "PIXELDATA_CODEC",
             dcm.compressed("1.2.840.10008.1.2.5", lambda frame: frame[: len(frame) // 2 // 2 * 2])),
    rejected("JPEG 2000 cut", "PIXELDATA_CODEC", dcm.jpeg_2000(0.1)),
    Fault("JPEG 2000 whole", dcm.jpeg_2000(1.0), "ok"),
    warned("series UID empty", "SERIES_UID_MISSING", dcm.every(SeriesInstanceUID="")),
    warned("SOP class of a capture", "SERIES_SOP_CLASS", dcm.every(SOPClassUID=dcm.CAPTURE)),
    warned("overlapping slices", "SERIES_THICKNESS", dcm.every(SliceThickness="5")),
    Fault("multi-frame", dcm.enhanced(lambda data: None), "ok"),
    rejected("multi-frame with a gap", "SERIES_GAP", dcm.enhanced(lambda d: dcm.frame_position(d, 11, 40.0))),
    rejected("multi-frame at one position", "SERIES_DUPLICATE",
             dcm.enhanced(lambda d: dcm.frame_position(d, 6, 5 * dcm.DZ_MM))),
    rejected("multi-frame without a group a frame", "SERIES_FRAMES", dcm.enhanced(
        lambda d: d.PerFrameFunctionalGroupsSequence.pop())),
    rejected("frames without groups", "SERIES_FRAMES",
             dcm.one(NumberOfFrames=2)),
    rejected("multi-frame cut", "PIXELDATA_SHORT", dcm.enhanced(frames_cut)),
    rejected("multi-frame with other spacing", "SERIES_TAG", dcm.enhanced(
        lambda d: dcm.put(d, SharedFunctionalGroupsSequence=[]))),
]  # fmt: skip

IRCADB = [
    rejected("tumor mask missing", "MASK_MISSING", files.without("MASKS_DICOM/livertumor")),
    rejected("all masks missing", "MASK_MISSING", files.without("MASKS_DICOM/livertumor", "MASKS_DICOM/liver")),
    rejected("scan missing", "SOURCE_MISSING", files.without("PATIENT_DICOM")),
    rejected("last slice of the scan missing", "SERIES_INCOMPLETE", files.without("PATIENT_DICOM/image_3")),
    rejected("first slice of the scan missing", "SERIES_INCOMPLETE", files.without("PATIENT_DICOM/image_0")),
    rejected("inner slice of the scan missing", "SERIES_GAP", files.without("PATIENT_DICOM/image_2")),
    rejected("last slice missing everywhere", "SERIES_INCOMPLETE",
             files.without(*(f"{name}/image_3" for name in ("PATIENT_DICOM", "MASKS_DICOM/liver",
                                                          "MASKS_DICOM/livertumor")))),
    rejected("last slice of a mask missing", "MASK_SHAPE", files.without("MASKS_DICOM/liver/image_3")),
    rejected("inner slice of a mask missing", "SERIES_GAP", files.without("MASKS_DICOM/liver/image_1")),
    rejected("mask of other rows", "MASK_SHAPE", files.mask(np.zeros((4, 7, 5), np.uint8))),
    rejected("mask elsewhere", "MASK_GEOMETRY", files.mask(files.valued(0), PixelSpacing=[0.8, 0.9])),
    rejected("mask of gray values", "MASK_VALUE", files.mask(files.valued(7))),
    rejected("scan of MR", "SERIES_MODALITY", files.scan_slice(1, Modality="MR")),
    rejected("slice of another series", "SERIES_MIXED", files.scan_slice(1, SeriesInstanceUID="2.25.99")),
    rejected("text among the slices", "DICOM_UNREADABLE",
             files.tree(lambda case: (case / "PATIENT_DICOM" / "notes.txt").write_text("read me"))),
    rejected("zip is no zip", "ARCHIVE_BAD", files.zipped(lambda path: path.write_bytes(b"PK"))),
    rejected("zip cut", "ARCHIVE_BAD", files.zipped(lambda path: path.write_bytes(path.read_bytes()[:-500]))),
    rejected("bit flipped in a zip", "ARCHIVE_BAD", files.zipped(files.flip_inside)),
    rejected("number of no patient", "CASE_UNKNOWN", files.tree(lambda case: None, 77)),
    rejected("patient twice", "CASE_DUPLICATE", files.twice),
    warned("zipped and loose", "SOURCE_TWICE", files.tree(files.both)),
    warned("unknown mask", "MASK_UNLISTED", files.tree(
        lambda case: files.written(case / "MASKS_DICOM" / "dragon", [plain_slice(k) for k in range(4)]))),
    warned("tumor outside the liver", "MASK_OUTSIDE_LIVER", files.mask(np.full((4, 6, 5), 255, np.uint8))),
]  # fmt: skip

LITS = [
    rejected("gzip cut", "GZIP_CORRUPT", files.zipped_gzip(lambda data: data[:-20])),
    rejected("bit flipped in a gzip", "GZIP_CORRUPT", files.zipped_gzip(lambda data: files.flipped(data, 60))),
    rejected("gzip of another CRC", "GZIP_CORRUPT", files.zipped_gzip(lambda data: files.flipped(data, -6))),
    rejected("rubbish after a gzip", "GZIP_CORRUPT", files.zipped_gzip(lambda data: data + b"rubbish")),
    rejected("NIfTI cut", "NIFTI_SHORT", files.volume(lambda hu: nifti_bytes(hu)[:-3])),
    rejected("no NIfTI", "NIFTI_HEADER", files.volume(lambda hu: b"not an image" * 50)),
    rejected("empty file", "NIFTI_HEADER", files.volume(lambda hu: b"")),
    rejected("complex values", "NIFTI_HEADER", files.volume(files.fields(datatype=32, bitpix=64))),
    rejected("four dimensions", "NIFTI_DIM", files.volume(files.fields(dim=[4, 5, 6, 2, 2, 1, 1, 1]))),
    rejected("header bomb", "NIFTI_DIM", files.volume(files.fields(dim=[3, 32000, 32000, 2000, 1, 1, 1, 1]))),
    rejected("more voxels than bytes", "NIFTI_SHORT",
             files.volume(files.fields(dim=[3, 4000, 4000, 4000, 1, 1, 1, 1]))),
    rejected("affine not finite", "NIFTI_AFFINE", files.volume(files.affine(shifted_far))),
    rejected("affine sheared", "NIFTI_AFFINE", files.volume(files.affine(shear))),
    rejected("affine against pixdim", "NIFTI_AFFINE", files.volume(files.affine(zoomed))),
    warned("no affine", "NIFTI_NO_AFFINE", files.volume(files.fields(sform_code=0, qform_code=0))),
    rejected("values not finite", "HU_RANGE", files.volume(
        lambda hu: nifti_bytes(np.where(hu > 1000, np.nan, hu).astype(np.float32)))),
    rejected("values beyond int16", "HU_RANGE", files.volume(lambda hu: nifti_bytes(hu.astype(np.int32) * 100))),
    warned("values are no HU", "HU_NO_AIR", files.volume(lambda hu: nifti_bytes(hu.clip(0, 255)))),
    warned("stored values without intercept", "HU_UNSHIFTED", files.valued_otherwise(lambda hu: hu + 1024)),
    warned("stored values and true padding", "HU_UNSHIFTED",
           files.valued_otherwise(lambda hu: np.where(hu == -1024, -2000, hu + 1024))),
    warned("air at -700", "HU_AIR", files.valued_otherwise(lambda hu: hu + 300)),
    warned("HU at half scale", "HU_AIR", files.valued_otherwise(lambda hu: hu / 2)),
    warned("HU at tenfold scale", "HU_AIR", files.valued_otherwise(lambda hu: hu * 10)),
    warned("slope applied twice", "HU_TISSUE", files.valued_otherwise(lambda hu: (hu + 1024) * 2 - 1024)),
    warned("slope of a quarter lost", "HU_TISSUE", files.valued_otherwise(lambda hu: (hu + 1024) / 4 - 1024)),
    warned("labels of another scan", "HU_LIVER",
           files.valued_otherwise(lambda hu: hu, lambda labels: np.roll(labels, 20, axis=1))),
    warned("only every eighth value", "HU_STEP", files.valued_otherwise(lambda hu: hu // 8 * 8)),
    warned("padding of -3024", "HU_PADDING", files.valued_otherwise(files.corners(-3024))),
    warned("padding of 0", "HU_PADDING", files.valued_otherwise(files.corners(0))),
    warned("cut at 100 HU", "HU_CUT", files.valued_otherwise(lambda hu: hu.clip(-1024, 100))),
    warned("more metal than body", "HU_HIGH", files.valued_otherwise(files.some(3071, 20))),
    warned("overflows", "HU_LIMIT", files.valued_otherwise(files.some(-32768, 900))),
    rejected("label 3", "LABEL_UNKNOWN", files.label(lambda labels: nifti_bytes(labels + np.uint8(1)))),
    rejected("half labels", "LABEL_UNKNOWN", files.label(lambda labels: nifti_bytes(labels.astype(np.float32) / 2))),
    rejected("label of other shape", "MASK_SHAPE", files.label(lambda labels: nifti_bytes(labels[:3]))),
    warned("label of another affine", "LABEL_AFFINE", files.label(
        lambda labels: nifti_bytes(labels, np.diag([-0.7, 0.8, 2, 1])))),
    rejected("label missing", "MASK_MISSING", files.pair(0, remove="segmentation")),
    rejected("volume missing", "SOURCE_MISSING", files.pair(0, remove="volume")),
    rejected("number of no case", "CASE_UNKNOWN", files.pair(131)),
    warned("identity header", "REPAIRED", files.identity),
    warned("identity header of another patient's slices", "CATALOG_MISMATCH", files.identity_of(29)),
    warned("axes exchanged", "REPAIRED", files.exchanged),
    rejected("zips without end", "ARCHIVE_LIMIT", files.nested),
    rejected("entry that lies about its size", "ARCHIVE_LIMIT", files.lying_bomb),
]  # fmt: skip


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    """The product's catalogue, with patient 2 and LiTS 28 of four slices."""
    found = load_catalog()
    four = {"slices": 4, "spacing_mm": (2.0, 0.8, 0.7)}
    cases = tuple(case.model_copy(update=four) if case.number == 2 else case for case in found.ircadb.cases)
    repairs = tuple(r.model_copy(update={"slices": 4}) if r.number == 28 else r for r in found.lits.repairs)
    ircadb, lits = (
        found.ircadb.model_copy(update={"cases": cases}),
        found.lits.model_copy(update={"repairs": repairs}),
    )
    return found.model_copy(update={"ircadb": ircadb, "lits": lits})


def names(faults: list[Fault]) -> list[str]:
    return [fault.name for fault in faults]


def check(fault: Fault, status: str, code: str, warnings: list[str], detail: str) -> None:
    """Compare what was said; a fault's own code must be the first thing said of it."""
    said = (status, code) if status != "ok" or not warnings else ("warning", fault.code)
    assert said == (fault.status, fault.code), (status, code, warnings, detail)
    assert fault.status != "warning" or fault.code in warnings
    assert not code or CODES[code].exit_code == 3
    assert detail or status != "rejected"


@pytest.mark.parametrize("fault", SERIES, ids=names(SERIES))
def test_series(fault: Fault, tmp_path: Path) -> None:
    fault.build(tmp_path)
    records = list(inspect_sources([tmp_path]))
    record = next((r for r in records if r["status"] == "rejected"), records[-1])
    check(fault, record["status"], record["code"], record["warnings"], record["detail"])


def ingested(folder: Path, catalog: Catalog) -> tuple[str, str, list[str], str]:
    found = discover([folder], catalog)
    for entry in found.rejected:
        return "rejected", entry.code, [], entry.detail
    (case,) = found.cases
    try:
        source = read_case(case, catalog)
    except (SourceError, GeometryError) as error:
        return "rejected", error.code, [], error.message
    return "ok", "", [note.code for note in source.notes], ""


@pytest.mark.parametrize("fault", IRCADB + LITS, ids=names(IRCADB + LITS))
def test_data_sets(fault: Fault, tmp_path: Path, catalog: Catalog) -> None:
    fault.build(tmp_path / "in")
    check(fault, *ingested(tmp_path / "in", catalog))


def test_the_ten_common_faults_of_series_have_a_code_each() -> None:
    assert len({code for _, code in dcm.TEN.values()}) == len(dcm.TEN) == 10


def test_names_are_unique_and_many() -> None:
    everything = names(SERIES + IRCADB + LITS)
    assert len(everything) == len(set(everything)) >= 60


def test_an_unspoiled_case_of_each_kind_is_read_without_a_warning(tmp_path: Path, catalog: Catalog) -> None:
    """Else the table could not tell a fault from the phantom's own."""
    dcm.every()(tmp_path / "series")
    (record,) = inspect_sources([tmp_path / "series"])
    assert (record["status"], record["warnings"]) == ("ok", [])
    files.pair(0)(tmp_path / "lits")
    assert ingested(tmp_path / "lits", catalog)[2] == []
    files.valued_otherwise(lambda hu: hu)(tmp_path / "body")
    assert ingested(tmp_path / "body", catalog)[2] == []


def test_multi_frame_rubbish_bits_and_jpeg_2000_give_the_values_of_the_plain_series(tmp_path: Path) -> None:
    hashes = set()
    for name, build in {
        "plain": dcm.every(),
        "frames": dcm.enhanced(lambda data: None),
        "bits": dcm.changed(dcm.garbage_bits),
        "rescale": dcm.changed(dcm.legal_rescale),
        "codec": dcm.jpeg_2000(1.0),
        "folders": dcm.foldered(lambda k: f"DIR{k % 3}"),
        "without syntax": dcm.without_syntax,
        "without preamble": dcm.bare("1.2.840.10008.1.2.1", keep_meta=True),
        "without meta information": dcm.bare("1.2.840.10008.1.2.1"),
        "without meta information, implicit": dcm.bare("1.2.840.10008.1.2"),
    }.items():
        build(tmp_path / name)
        (record,) = inspect_sources([tmp_path / name])
        hashes.add((record["hu_sha256"], tuple(record["spacing_mm"]), record["orientation"]))
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "syntax", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"]
)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_lossless_codecs_give_the_values_of_the_plain_series(tmp_path: Path, syntax: str, signed: bool) -> None:
    dcm.every()(tmp_path / "plain")
    dcm.lossless(syntax, signed)(tmp_path / "codec")
    (plain,), (codec,) = (inspect_sources([tmp_path / name]) for name in ("plain", "codec"))
    assert (codec["status"], codec["detail"]) == ("ok", plain["detail"])
    for key in ("hu_sha256", "spacing_mm", "orientation", "shape_zyx"):
        assert codec[key] == plain[key]
