"""DICOM series with one fault each: a smooth 12-slice phantom of 32 x 32 pixels, as a scanner would send it."""

from __future__ import annotations

import io
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from livprep.formats.dicom_write import uid_from

COUNT, SIDE, DZ_MM = 12, 32, 2.5
CT, ENHANCED_CT, CAPTURE = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.7",
)
JPEG_2000, MPEG_2, DEFLATED = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.1.99"


def stored(k: int) -> np.ndarray:
    """Stored values of slice `k`, HU + 1024: a body that changes a little from slice to slice, in air."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    body = (x / (12 + 0.1 * k)) ** 2 + (y / 9) ** 2 < 1
    return np.where(body, 1064 + k + (x + y).astype(int), 24).astype(np.uint16)


def plain(k: int, *, count: int = COUNT) -> Dataset:
    """Slice `k` of a whole series of `count`."""
    data = Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CT
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid_from("corpus", k)
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.Modality, data.Manufacturer, data.PatientName, data.PatientID = "CT", "GE MEDICAL SYSTEMS", "Phantom", "1"
    data.PatientPosition, data.KVP, data.StudyID = "HFS", "120", "1"
    data.StudyDate, data.StudyTime = "20200101", "120000"
    data.StudyInstanceUID, data.SeriesInstanceUID = uid_from("study"), uid_from("series")
    data.FrameOfReferenceUID, data.SeriesNumber, data.AcquisitionNumber = uid_from("frame"), 2, 1
    data.InstanceNumber, data.ImagesInAcquisition = k + 1, count
    data.SliceThickness = data.SpacingBetweenSlices = f"{DZ_MM}"
    data.ImagePositionPatient, data.ImageOrientationPatient = [-12, -12, k * DZ_MM], [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.RescaleSlope, data.RescaleIntercept = [0.8, 0.8], "1", "-1024"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.Rows = data.Columns = SIDE
    data.PixelData = stored(k).tobytes()
    data["PixelData"].VR = "OW"
    return data


def encoded(data: Dataset) -> bytes:
    """The bytes of a file; what is invalid stays so."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        implicit = False if data.file_meta.TransferSyntaxUID == DEFLATED else None
        little = None if implicit is None else True
        pydicom.dcmwrite(buffer, data, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    return buffer.getvalue()


def write(folder: Path, slices: list[Dataset]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(slices):
        (folder / f"IM{number:04d}").write_bytes(encoded(data))


Build = Callable[[Path], None]


def changed(change: Callable[[list[Dataset]], Any]) -> Build:
    """A series after `change`, which edits the list of slices."""

    def build(folder: Path) -> None:
        slices = [plain(k) for k in range(COUNT)]
        change(slices)
        write(folder / "scan", slices)

    return build


def every(**values: Any) -> Build:
    """A series with elements set in all slices; None deletes one."""
    return changed(lambda slices: [put(data, **values) for data in slices])


def one(k: int = 5, **values: Any) -> Build:
    """A series with elements set in slice `k` alone; None deletes one."""
    return changed(lambda slices: put(slices[k], **values))


def put(data: Dataset, **values: Any) -> Dataset:
    """The slice itself, with elements set; None deletes one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in values.items():
            if value is None:
                delattr(data, keyword)
            else:
                setattr(data, keyword, value)
    return data


def drop(*numbers: int) -> Build:
    def change(slices: list[Dataset]) -> None:
        slices[:] = [data for k, data in enumerate(slices) if k not in numbers]

    return changed(change)


def moved(step: Callable[[int], tuple[float, float, float]]) -> Build:
    """Slice `k` moved by `step(k)` mm."""

    def change(slices: list[Dataset]) -> None:
        for k, data in enumerate(slices):
            old = [float(v) for v in data.ImagePositionPatient]
            data.ImagePositionPatient = [f"{a + b:.6g}" for a, b in zip(old, step(k), strict=True)]

    return changed(change)


def cut(keep: Callable[[int], int], k: int = 5) -> Build:
    """A series whose file `k` is cut to `keep(size)` bytes."""

    def build(folder: Path) -> None:
        every()(folder)
        path = folder / "scan" / f"IM{k:04d}"
        data = path.read_bytes()
        path.write_bytes(data[: keep(len(data))])

    return build


def other_rows(slices: list[Dataset]) -> None:
    slices[5].Rows = SIDE - 2
    slices[5].PixelData = stored(5)[:-2].tobytes()


def copied(slices: list[Dataset]) -> None:
    again = plain(5)
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = uid_from("again")
    slices.append(again)


TEN: dict[str, tuple[Build, str]] = {
    "inner slices missing": (drop(5, 6), "SERIES_GAP"),
    "last slice missing": (drop(COUNT - 1), "SERIES_INCOMPLETE"),
    "duplicate": (changed(copied), "SERIES_DUPLICATE"),
    "gantry tilt": (moved(lambda k: (0.0, 0.6 * k, 0.0)), "SERIES_TILT"),
    "one slice shifted": (moved(lambda k: (3.0 if k == 5 else 0.0, 0.0, 0.0)), "SERIES_SHIFT"),
    "truncated": (cut(lambda size: size - 700), "PIXELDATA_SHORT"),
    "other orientation": (one(ImageOrientationPatient=[0, 1, 0, -1, 0, 0]), "SERIES_ORIENTATION"),
    "other PixelSpacing": (one(PixelSpacing=[0.9, 0.9]), "SERIES_SPACING"),
    "other intercept": (one(RescaleIntercept="0"), "SERIES_RESCALE"),
    "other Rows": (changed(other_rows), "SERIES_SHAPE"),
}
"""The common faults of series, each with its own code."""


# --- what needs more than a changed element ---------------------------------------------------------------------


def legal_rescale(slices: list[Dataset]) -> None:
    """One slice stored on another scale, with the slope and intercept that undo it."""
    slices[5].PixelData = (stored(5) + 500).tobytes()
    slices[5].RescaleIntercept = "-1524"


def acquired(counts: tuple[int, int], *missing: int) -> Build:
    """Two acquisitions of six slices, whose headers count `counts`, without the slices `missing`."""

    def change(slices: list[Dataset]) -> None:
        for k, data in enumerate(slices):
            put(data, AcquisitionNumber=1 + k // 6, ImagesInAcquisition=counts[k // 6])
        slices[:] = [data for k, data in enumerate(slices) if k not in missing]

    return changed(change)


def localizer(k: int) -> Dataset:
    data = plain(0)
    data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    data.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    data.SOPInstanceUID = uid_from("localizer", k)
    return data


def capture() -> Dataset:
    data = plain(0)
    data.SOPClassUID, data.SeriesInstanceUID = CAPTURE, uid_from("capture")
    put(data, ImagePositionPatient=None, ImageOrientationPatient=None, SamplesPerPixel=3)
    return data


def padded(slices: list[Dataset]) -> None:
    """The circle outside the field of view, as GE marks it: -2000 stored, signed."""
    for k, data in enumerate(slices):
        pixels = stored(k).astype(np.int16)
        pixels[:3] = -2000
        data.PixelRepresentation, data.PixelData = 1, pixels.tobytes()
        data.add_new(0x00280120, "SS", -2000)


def phases(keyword: str) -> Build:
    """Two phases at the same places in one series, told apart by one element."""

    def change(slices: list[Dataset]) -> None:
        slices.extend([plain(k) for k in range(COUNT)])
        for k, data in enumerate(slices):
            put(data, **{keyword: 1 + k // COUNT, "InstanceNumber": k + 1})

    return changed(change)


def positioned(z: Callable[[int], float]) -> Build:
    """Thin slices, the `k`-th at `z(k)` mm."""
    return changed(lambda slices: [put(data, ImagePositionPatient=[-12, -12, z(k)], SliceThickness="0.625",
                                       SpacingBetweenSlices=None) for k, data in enumerate(slices)])  # fmt: skip


def foldered(name: Callable[[int], str], without: tuple[int, ...] = ()) -> Build:
    """A series whose `k`-th slice lies in the folder `name(k)`."""

    def build(folder: Path) -> None:
        for k in range(COUNT):
            if k not in without:
                (folder / "scan" / name(k)).mkdir(parents=True, exist_ok=True)
                data = put(plain(k), ImagesInAcquisition=None)
                (folder / "scan" / name(k) / f"IM{k:04d}").write_bytes(encoded(data))

    return build


def backed_up(folder: Path) -> None:
    every()(folder)
    shutil.copytree(folder / "scan", folder / "backup")


def protocol() -> Dataset:
    """A page of text that Siemens stores as a CT image."""
    data = plain(0)
    put(data, ImagePositionPatient=None, ImageOrientationPatient=None)
    data.ImageType = ["ORIGINAL", "SECONDARY", "OTHER", "CT_SOM5 PROT"]
    return data


def bare(syntax: str, *, keep_meta: bool = False) -> Build:
    """A series of files without preamble, with the meta information or without."""

    def build(folder: Path) -> None:
        for k in range(COUNT):
            data = plain(k)
            data.file_meta.TransferSyntaxUID = syntax
            content = encoded(data)[132:]
            if not keep_meta:
                content = content[12 + int.from_bytes(content[8:12], "little") :]  # (0002,0000) counts what follows it
            (folder / "scan").mkdir(parents=True, exist_ok=True)
            (folder / "scan" / f"IM{k:04d}").write_bytes(content)

    return build


def without_syntax(folder: Path) -> None:
    """A series whose files do not say their transfer syntax."""
    for k in range(COUNT):
        content = encoded(plain(k))
        start = content.index(b"\2\0\x10\0UI")
        end = start + 8 + int.from_bytes(content[start + 6 : start + 8], "little")
        counted = int.from_bytes(content[140:144], "little") - (end - start)
        content = content[:140] + counted.to_bytes(4, "little") + content[144:start] + content[end:]
        (folder / "scan").mkdir(parents=True, exist_ok=True)
        (folder / "scan" / f"IM{k:04d}").write_bytes(content)


def garbage_bits(slices: list[Dataset]) -> None:
    for k, data in enumerate(slices):
        data.BitsStored, data.HighBit = 12, 11
        data.PixelData = (stored(k) | np.uint16((k % 16) << 12)).tobytes()


def compressed(syntax: str, frame: Callable[[bytes], bytes]) -> Build:
    """A series of RLE frames that are damaged, or of a frame that no decoder reads."""

    def change(slices: list[Dataset]) -> None:
        for data in slices:
            data.compress(RLELossless)
        (code,) = pydicom.encaps.generate_frames(slices[5].PixelData, number_of_frames=1)
        slices[5].PixelData = encapsulate([frame(code)])
        slices[5].file_meta.TransferSyntaxUID = syntax

    return changed(change)


def jpeg_2000(keep: float, syntax: str = JPEG_2000) -> Build:
    """A series of JPEG 2000 frames without loss, one cut to a share of its bytes."""

    def change(slices: list[Dataset]) -> None:
        from PIL import Image

        for k, data in enumerate(slices):
            buffer = io.BytesIO()
            Image.fromarray(stored(k)).save(buffer, "JPEG2000", no_jp2=True, irreversible=False)
            frame = buffer.getvalue()
            data.PixelData = encapsulate([frame[: int(len(frame) * keep)] if k == 5 else frame])
            data["PixelData"].is_undefined_length, data.PixelRepresentation = True, 0
            data.file_meta.TransferSyntaxUID = syntax

    return changed(change)


def by_gdcm(plain: bytes, syntax: str) -> bytes:
    """A file with its frame compressed by GDCM, which names the syntax; needs the extra `codecs`."""
    import gdcm

    with tempfile.TemporaryDirectory() as folder:
        before, after = f"{folder}/before", f"{folder}/after"
        Path(before).write_bytes(plain)
        reader, writer = gdcm.ImageReader(), gdcm.ImageWriter()
        reader.SetFileName(before)
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(after)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return Path(after).read_bytes()


def lossless(syntax: str, signed: bool) -> Build:
    """A series that GDCM compressed without loss; signed values reach below 0."""

    def build(folder: Path) -> None:
        plain = folder.with_name(f"{folder.name}.plain")
        changed(_signed if signed else lambda slices: None)(plain)
        (folder / "scan").mkdir(parents=True)
        for path in sorted((plain / "scan").iterdir()):
            (folder / "scan" / path.name).write_bytes(by_gdcm(path.read_bytes(), syntax))
        shutil.rmtree(plain)

    return build


def _signed(slices: list[Dataset]) -> None:
    """The same HU with values that are HU already."""
    for k, data in enumerate(slices):
        values = stored(k).astype(np.int32) * int(data.RescaleSlope) + int(data.RescaleIntercept)
        data.PixelData, data.PixelRepresentation = values.astype("<i2").tobytes(), 1
        data.RescaleSlope, data.RescaleIntercept = "1", "0"
        data.BitsStored, data.HighBit = 16, 15


def bomb(slices: list[Dataset]) -> None:
    slices[5].add_new(0x00091010, "OB", bytes(65 << 20))
    slices[5].file_meta.TransferSyntaxUID = DEFLATED


def enhanced(change: Callable[[Dataset], Any]) -> Build:
    """One multi-frame file of the whole series, after `change`."""

    def build(folder: Path) -> None:
        data = enhanced_ct()
        change(data)
        write(folder / "scan", [data])

    return build


def group(**sequences: dict[str, Any]) -> Dataset:
    """A functional group: sequences of one item each."""
    result = Dataset()
    for name, values in sequences.items():
        item = Dataset()
        for keyword, value in values.items():
            setattr(item, keyword, value)
        setattr(result, name, Sequence([item]))
    return result


def enhanced_ct() -> Dataset:
    """An Enhanced CT object: positions a frame, orientation and spacing shared, rescale a frame."""
    data = plain(0)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = ENHANCED_CT
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(data, keyword)
    del data.RescaleSlope, data.RescaleIntercept, data.ImagesInAcquisition
    data.NumberOfFrames = COUNT
    data.SharedFunctionalGroupsSequence = [
        group(
            PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            PixelMeasuresSequence={"PixelSpacing": [0.8, 0.8], "SliceThickness": f"{DZ_MM}"},
        )
    ]
    data.PerFrameFunctionalGroupsSequence = [
        group(
            PlanePositionSequence={"ImagePositionPatient": [-12, -12, k * DZ_MM]},
            PixelValueTransformationSequence={"RescaleSlope": "1", "RescaleIntercept": "-1024"},
            CTImageFrameTypeSequence={"FrameType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]},
        )
        for k in range(COUNT)
    ]
    data.PixelData = b"".join(stored(k).tobytes() for k in range(COUNT))
    return data


def frame_position(data: Dataset, k: int, z: float) -> None:
    groups = data.PerFrameFunctionalGroupsSequence
    groups[k].PlanePositionSequence[0].ImagePositionPatient = [-12, -12, z]
