"""The readers of outside files under damage: valid inputs of every form, and what must hold of any input at all."""

from __future__ import annotations

import gzip
import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import corpus_dicom as corpus
import nibabel as nib
import numpy as np
import pydicom
from building import nifti_bytes, scan
from mutation import Base, Field
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from livprep.cases import FileRef
from livprep.catalog import dump_catalog, load_catalog
from livprep.errors import SourceError
from livprep.formats.archive import Faults, close_archives, read_bytes, uncompressed_size, walk
from livprep.formats.dicom import read_series
from livprep.formats.dicom_header import patient_number, peek
from livprep.formats.hashing import HashingReader
from livprep.formats.nifti import read_nifti, to_hu, to_labels
from livprep.sources import discover

TOKEN = "TOKEN^Secret"
"""Stands in every text of the headers; no message may hold it."""
Attempts = Sequence[Callable[[], object]]


@dataclass(frozen=True)
class Reader:
    """One reader of outside files.

    Parameters
    ----------
    name
        Seeds its inputs.
    make_bases
        Valid inputs.
    attempts
        The ways in which an input is read, given its base, its bytes and a folder to use; each may raise a LivError.
    """

    name: str
    make_bases: Callable[[], list[Base]]
    attempts: Callable[[Base, bytes, Path], Attempts]

    @cached_property
    def bases(self) -> list[Base]:
        """Valid inputs, made once."""
        return self.make_bases()


# --- DICOM ------------------------------------------------------------------------------------------------------

_NUMBERS = {"US": "integer", "SS": "integer", "UL": "integer", "SL": "integer", "FD": "float", "FL": "float"}


_NESTED = (b"\x20\0\x32\0", b"\x20\0\x37\0", b"\x28\0\x30\0", b"\x18\0\x50\0", b"\x28\0\x52\x10", b"\x28\0\x53\x10")


def _slice(k: int) -> Dataset:
    """Slice `k` of a tiny series of two, with a token in texts."""
    data = corpus.plain(k, count=2)
    data.PatientName = data.PatientID = data.StudyDescription = data.Manufacturer = TOKEN
    data.PixelData = corpus.stored(k)[:8, 8:24].tobytes()
    data.Rows, data.Columns = 8, 16
    data.private_block(0x0011, TOKEN, create=True).add_new(1, "LO", TOKEN)
    return data


def _as_syntax(data: Dataset, syntax: str) -> bytes:
    data.file_meta.TransferSyntaxUID = syntax
    data.preamble = bytes(128)
    if syntax == ExplicitVRBigEndian:
        data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(
            buffer,
            data,
            implicit_vr=syntax == ImplicitVRLittleEndian,
            little_endian=syntax != ExplicitVRBigEndian,
            force_encoding=True,
        )
    return buffer.getvalue()


def _dicom_fields(data: bytes, *, implicit: bool = False) -> tuple[Field, ...]:
    """Tags, VRs, lengths and values of all elements, nested ones too, and lengths of fragments."""
    fields: list[Field] = []

    def visit(dataset: Dataset, implicit: bool) -> None:
        for tag in list(dataset.keys()):
            raw = dataset.get_item(tag)
            if not isinstance(raw, pydicom.dataelem.RawDataElement):
                continue
            long = not implicit and raw.VR in pydicom.valuerep.EXPLICIT_VR_LENGTH_32
            header = raw.value_tell - (12 if long else 8)
            fields.append(Field(header, 4))
            fields.append(Field(header + 4, 2))
            fields.append(Field(raw.value_tell - (4 if long or implicit else 2), 4 if long or implicit else 2))
            vr = raw.VR or pydicom.datadict.dictionary_VR(tag) if tag in pydicom.datadict.DicomDictionary else "UN"
            size = min(len(raw.value or b""), 64)
            if size:
                fields.extend([Field(raw.value_tell, size, _NUMBERS.get(vr, "text"))] * 4)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(data))
        visit(dataset, implicit)
        visit(dataset.file_meta, False)
    for tag in _NESTED:  # in functional groups
        for match in re.finditer(re.escape(tag) + b"DS", data):
            size = int.from_bytes(data[match.end() : match.end() + 2], "little")
            fields.extend([Field(match.end() + 2, size, "text")] * 3 + [Field(match.end(), 2)])
    fields.extend(Field(match.start() + 4, 4) for match in re.finditer(b"\xfe\xff[\x00\x0d\xdd]\xe0", data))
    return tuple(fields)


_SYNTAX, _DEFLATED = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"


def _as_deflated(explicit: bytes) -> Base:
    """An explicit little endian file with its data set deflated after the damage."""
    at = explicit.index(_SYNTAX)
    grown = len(_DEFLATED) - len(_SYNTAX)
    data = bytearray(explicit.replace(_SYNTAX, _DEFLATED, 1))
    data[at - 2 : at] = len(_DEFLATED).to_bytes(2, "little")
    start = 144 + int.from_bytes(explicit[140:144], "little") + grown  # behind the file meta information
    data[140:144] = (start - 144).to_bytes(4, "little")
    fields = [Field(f.offset + grown * (f.offset > at), f.size, f.kind) for f in _dicom_fields(explicit)]

    def pack(data: bytes) -> bytes:
        stream = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        return data[:start] + stream.compress(data[start:]) + stream.flush()

    return Base("deflated", bytes(data), tuple(fields), pack)


def _frames(count: int = 2) -> Dataset:
    data = _slice(0)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = corpus.ENHANCED_CT
    del data.ImagePositionPatient, data.ImageOrientationPatient, data.PixelSpacing, data.RescaleSlope
    del data.ImagesInAcquisition
    data.NumberOfFrames = count
    measures = {"PixelSpacing": [0.8, 0.8], "SliceThickness": "2.5"}
    plane = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    data.SharedFunctionalGroupsSequence = [corpus.group(PlaneOrientationSequence=plane, PixelMeasuresSequence=measures)]
    data.PerFrameFunctionalGroupsSequence = [
        corpus.group(
            PlanePositionSequence={"ImagePositionPatient": [-12, -12, 2.5 * k]},
            PixelValueTransformationSequence={"RescaleSlope": "1", "RescaleIntercept": "-1024"},
        )
        for k in range(count)
    ]
    data.PixelData = b"".join(_slice(k).PixelData for k in range(count))
    return data


def _jpeg_2000() -> bytes:
    from PIL import Image

    data, buffer = _slice(1), io.BytesIO()
    Image.fromarray(corpus.stored(1)[:8, 8:24]).save(buffer, "JPEG2000", no_jp2=True, irreversible=False)
    data.PixelData, data.PixelRepresentation = encapsulate([buffer.getvalue()]), 0
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = corpus.JPEG_2000
    return corpus.encoded(data)


def _rle(data: Dataset) -> bytes:
    data.compress(RLELossless)
    return corpus.encoded(data)


def _dicom_bases() -> list[Base]:
    explicit = corpus.encoded(_slice(1))
    files = {
        "explicit": explicit,
        "big endian": _as_syntax(_slice(1), ExplicitVRBigEndian),
        "RLE": _rle(_slice(1)),
        "multi-frame": corpus.encoded(_frames()),
        "multi-frame RLE": _rle(_frames()),
    }
    implicit = _as_syntax(_slice(1), ImplicitVRLittleEndian)
    bases = [Base(name, data, _dicom_fields(data)) for name, data in files.items()]
    bases.append(Base("implicit", implicit, _dicom_fields(implicit, implicit=True)))
    bases.append(_as_deflated(explicit))
    for name, encode in (
        ("JPEG 2000", _jpeg_2000),
        ("JPEG-LS", lambda: corpus.by_gdcm(corpus.encoded(_slice(1)), "JPEGLSLossless")),
        ("JPEG lossless", lambda: corpus.by_gdcm(corpus.encoded(_slice(1)), "JPEGLosslessProcess14_1")),
    ):
        try:
            data = encode()
        except ImportError:  # without the codecs' extra; the numbers of all other inputs stay
            name, data = "explicit", explicit
        bases.append(Base(name, data, _dicom_fields(data)))
    return bases


@dataclass
class _Memory(HashingReader):
    """A series that lies nowhere."""

    files: dict[str, bytes] = field(default_factory=dict)

    def read(self, role: str, ref: FileRef) -> bytes:
        return self.files[ref.path]


_REFS = tuple(FileRef(f"/scan/image_{k}") for k in range(2))
_WHOLE = corpus.encoded(_slice(0))


def _dicom_attempts(base: Base, data: bytes, folder: Path) -> Attempts:
    memory = _Memory(files={_REFS[0].path: _WHOLE, _REFS[1].path: data})
    refs = _REFS[1:] if base.name.startswith("multi-frame") else _REFS
    return (
        lambda: read_series(memory, "image", refs),
        lambda: peek(_REFS[1], data),
        lambda: patient_number(data),
    )


# --- NIfTI ------------------------------------------------------------------------------------------------------


def _nifti_fields(kind: type) -> tuple[Field, ...]:
    fields: list[Field] = []
    for name, (dtype, offset, *_) in kind.template_dtype.fields.items():
        item, count = dtype.base, int(np.prod(dtype.shape)) if dtype.shape else 1
        of_kind = {"i": "integer", "u": "integer", "f": "float", "S": "text"}[item.kind]
        weight = 4 if name in ("dim", "pixdim", "vox_offset", "scl_slope", "scl_inter", "datatype") else 1
        fields.extend([Field(offset + k * item.itemsize, item.itemsize, of_kind) for k in range(count)] * weight)
    return tuple(fields)


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def _nifti_bases() -> list[Base]:
    texts = {"descrip": TOKEN, "aux_file": TOKEN, "intent_name": TOKEN, "db_name": TOKEN}
    hu, labels = scan().image.hu, scan().label_map.labels
    one = _nifti_fields(nib.Nifti1Header)
    plain = nifti_bytes(hu, fields=texts)
    floats = nifti_bytes(hu.astype(np.float32), fields={**texts, "scl_slope": 2.0, "scl_inter": 1.0})
    two = nib.Nifti2Image(labels.transpose(2, 1, 0), np.diag([0.7, 0.8, 2.0, 1.0])).to_bytes()
    big_header = nib.Nifti1Image(hu.T, np.diag([0.7, 0.8, 2.0, 1.0])).header.as_byteswapped(">")
    big_header["vox_offset"] = 352
    big = big_header.binaryblock
    return [
        Base("nii", plain, one),
        Base("nii of labels", nifti_bytes(labels, fields=texts), one),
        Base("nii of floats", floats, one),
        Base("nii, big endian", big + bytes(4) + hu.astype(">i2").tobytes(), one),
        Base("nii, version 2", two, _nifti_fields(nib.Nifti2Header)),
        Base("nii.gz", plain, one, _gzip),
        Base("nii.gz of floats", floats, one, _gzip),
        Base("nii.gz, two members", plain, one, lambda data: _gzip(data[:400]) + _gzip(data[400:])),
    ]


def _nifti_attempts(base: Base, data: bytes, folder: Path) -> Attempts:
    ref = _REFS[0]
    return (
        lambda: to_hu(ref, read_nifti(ref, data)),
        lambda: to_labels(ref, read_nifti(ref, data), (0, 1, 2)),
    )


# --- zips -------------------------------------------------------------------------------------------------------

_ZIP_PARTS = {
    b"PK\3\4": (4, 2, 2, 2, 2, 2, 4, 4, 4, 2, 2),
    b"PK\1\2": (4, 2, 2, 2, 2, 2, 2, 4, 4, 4, 2, 2, 2, 2, 2, 4, 4),
    b"PK\5\6": (4, 2, 2, 2, 2, 4, 4, 2),
}  # sizes of the fields of each record, signature first (APPNOTE 4.3)
_NAMES = (b"../../evil", b"/etc/evil",
          b"a/../b", b"", b"/", b".", b"..", b"a\0b", b"C:\\x", b"x" * 300, b"\xff\xfe",
          b"b.zip", b"a.zip/", b"d/" * 40 + b"x",
          b"\n\x1b[2J", b".DS_Store", b"volume-0.nii.gz", b"-rf", b"~/x")  # fmt: skip


def _zip_fields(data: bytes) -> tuple[Field, ...]:
    fields: list[Field] = []
    for signature, sizes in _ZIP_PARTS.items():
        for match in re.finditer(re.escape(signature), data):
            offset = match.start()
            for size in sizes:
                fields.append(Field(offset, size))
                offset += size
            if signature != b"PK\5\6":
                at = 26 if signature == b"PK\3\4" else 28
                length = int.from_bytes(data[match.start() + at :][:2], "little")
                fields.append(Field(offset, length, "text"))
    return tuple(fields)


def _zip(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as target:
        for name, data in entries.items():
            target.writestr(zipfile.ZipInfo(name), data, method)
        target.comment = comment
    return buffer.getvalue()


def _zip_of_stream() -> bytes:
    """A zip that was written to a pipe: data descriptors behind the entries, Zip64 sizes."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, piece: bytes) -> int:  # type: ignore[override]
            self.data += piece
            return len(piece)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as target:  # type: ignore[call-overload]
        for k in range(2):
            with target.open(zipfile.ZipInfo(f"d/image_{k}"), "w", force_zip64=True) as entry:
                entry.write(bytes(range(200)))
    return bytes(pipe.data)


def _zip_bases() -> list[Base]:
    rng = np.random.default_rng(0)
    slices = {f"PATIENT_DICOM/image_{k}": rng.bytes(100) + bytes(200) for k in range(3)}
    inner = _zip(slices)
    masks = _zip({"MASKS_DICOM/": b"", "MASKS_DICOM/liver/image_0": bytes(500)}, comment=b"TOKEN^Secret")
    files = {
        "zip": inner,
        "stored": _zip(slices, zipfile.ZIP_STORED),
        "bzip2": _zip(slices, zipfile.ZIP_BZIP2),
        "lzma": _zip(slices, zipfile.ZIP_LZMA),
        "stream": _zip_of_stream(),
        "nested": _zip({"3Dircadb1.1/PATIENT_DICOM.zip": inner, "3Dircadb1.1/MASKS_DICOM.zip": masks}),
        "nested, stored": _zip({"a/b.zip": _zip({"c.zip": masks}, zipfile.ZIP_STORED)}, zipfile.ZIP_STORED),
    }
    return [Base(name, data, _zip_fields(data), odd_texts=_NAMES) for name, data in files.items()]


def _zip_attempts(base: Base, data: bytes, folder: Path) -> Attempts:
    path = folder / "mutated.zip"
    path.write_bytes(data)
    close_archives()

    def read_all() -> None:
        faults: Faults = []
        found = [ref for parts, ref in walk(path, faults) if _inside(parts)]
        fault: SourceError | None = None
        for ref in found:
            uncompressed_size(ref)
            try:
                read_bytes(ref)
            except SourceError as error:
                fault = error
        if fault is not None:
            raise fault

    return (read_all, close_archives)


def _inside(parts: tuple[str, ...]) -> bool:
    if any(part in ("", ".", "..") or "/" in part for part in parts):
        raise AssertionError(f"a name leads elsewhere: {parts}")
    return True


# --- catalogues -------------------------------------------------------------------------------------------------

_YAML = (b"", b"~", b"[]", b"{}", b"[", b"}", b"- -", b"? [a]: b", b"? {a: b}", b"&a", b"*a",
         b"!!python/name:os.system",
         b"!!binary eHg", b"!!set {a}", b"!!timestamp x", b"!!omap [a: 1]", b"<<: {a: 1}", b"2001-99-99", b"0000-00-00",
         b"2001-01-01 25:61:61", b"1e999", b".inf", b".nan", b"-1", b"0", b"1e9", b"999999999999", b"9" * 5000, b"0x",
         b"0b", b"1:60:60", b"1_000", b"true", b"'", b'"', b'"\\ud800"', b"|", b">", b"%YAML 9.9", b"---", b"...",
         b"\0", b"\xff", b"\xe2\x80\xa8", b"\t", b"[" * 3000, b"{a: " * 3000, b"- " * 3000, b"a" * 3000, b"!" * 300,
         b"(", b"*", b"[0-9", b"*" * 200, b"../x", b"/etc", b"own: []", b"schema: 1")  # fmt: skip


def _yaml_fields(text: bytes) -> tuple[Field, ...]:
    spans = [(m.start(), m.end()) for m in re.finditer(rb"[^\s,:\[\]{}#-][^\s,:\[\]{}#]*", text)]
    spans += [(m.start(), m.end()) for m in re.finditer(rb"(?m)^.*\n", text)]
    return tuple(Field(start, end - start, "text") for start, end in spans)


def _small_catalog() -> bytes:
    """The product's catalogue with two patients; it stays consistent."""
    data = load_catalog().as_dict()
    keep = {1, 2}
    data["ircadb"]["cases"] = [case for case in data["ircadb"]["cases"] if case["number"] in keep]
    pairs = [pair for pair in data["overlaps"]["pairs"] if pair["ircadb"] in keep]
    data["overlaps"]["pairs"] = pairs
    data["lits"]["repairs"] = [repair for repair in data["lits"]["repairs"] if repair["ircadb"] in keep]
    return dump_catalog(type(load_catalog()).model_validate(data)).encode()


_OWN = b"""schema: 1
own:
  - case: own-1
    patient: P-1
    image: scans/a/ct
    label: scans/a/seg.nii.gz
    label_map: {0: background, 1: liver, 2: tumor}
  - {case: own-2, image: "scans/b/*.nii", label: scans/b/seg.nii, label_map: {7: liver}}
"""


def _catalog_bases() -> list[Base]:
    own = Base("own", _OWN, _yaml_fields(_OWN), odd_texts=_YAML)
    small = _small_catalog()
    return [own, own, own, Base("full", small, _yaml_fields(small), odd_texts=_YAML)]


def _catalog_attempts(base: Base, data: bytes, folder: Path) -> Attempts:
    path, source = folder / "catalog.yaml", folder / "source"
    path.write_bytes(data)
    if not source.exists():
        for name in ("3Dircadb1.1/PATIENT_DICOM/image_0", "scans/a/ct/0", "scans/a/seg.nii.gz", "volume-28.nii"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(b"")

    def use() -> None:
        catalog = load_catalog(path)
        discover([source], catalog)
        for case in ("lits-028", "ircadb-01", "own-1", "x"):
            catalog.patient_of(case), catalog.lists(case)
        catalog.digest  # noqa: B018 - computed

    return (use,)


READERS = {
    reader.name: reader
    for reader in (
        Reader("dicom", _dicom_bases, _dicom_attempts),
        Reader("nifti", _nifti_bases, _nifti_attempts),
        Reader("archive", _zip_bases, _zip_attempts),
        Reader("catalog", _catalog_bases, _catalog_attempts),
    )
}
