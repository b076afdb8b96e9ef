"""Tokens in all places of a source where text can stand, so that each can be looked for in all that is written."""

from __future__ import annotations

import gzip
import io
import re
import struct
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from building import nifti_bytes
from pydicom.datadict import DicomDictionary, RepeatersDictionary, dictionary_keyword, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

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


# --- everywhere -------------------------------------------------------------------------------------------------

_STRINGS = {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
_READ = {
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "Modality", "SliceThickness", "SpacingBetweenSlices",
    "GantryDetectorTilt", "SeriesInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient", "NumberOfFrames",
    "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept", "PhotometricInterpretation",
    "PatientName",
}  # fmt: skip
"""What the readers act upon, and so must be right in a scan that is to be read (3DIRCADb's name holds the number)."""


_TOKEN = re.compile(rb"tk([0-9]{5})", re.IGNORECASE)
BEHIND = "behind the last element"


@dataclass
class Tokens:
    """Unique words, as handed out; `TK` begins no word of the product or of the phantoms."""

    count: int = 0

    def new(self) -> str:
        """The next token, of eight characters."""
        self.count += 1
        return f"TK{self.count:05d}q"

    def found_in(self, text: str | bytes) -> list[str]:
        """Tokens that stand in a text, in capitals or not, also as UTF-16 or without their last letter."""
        data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        found = {int(number) for form in (data, data.replace(b"\0", b"")) for number in _TOKEN.findall(form)}
        return [f"TK{number:05d}q" for number in sorted(found) if 1 <= number <= self.count]


def _element(tag: int, vr: str, value: bytes) -> bytes:
    value += b" " * (len(value) % 2)
    length = struct.pack("<HI", 0, len(value)) if vr in EXPLICIT_VR_LENGTH_32 else struct.pack("<H", len(value))
    return struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode()) + length + value


def _raw(data: bytes) -> tuple[dict[int, tuple[str, bytes]], dict[int, tuple[str, bytes]]]:
    """Elements of the file meta information and of the data set, as encoded."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    sets: list[dict[int, tuple[str, bytes]]] = []
    for part in (dataset.file_meta, dataset):
        items = [part.get_item(tag) for tag in list(part.keys())]
        values = {int(item.tag): (item.VR, item.value) for item in items}
        sets.append({t: (vr, v if isinstance(v, bytes) else str(v).encode()) for t, (vr, v) in values.items()})
    return sets[0], sets[1]


def planted_slice(data: bytes, tokens: Tokens, *, every: bool = True, fault: str = "") -> bytes:
    """A slice with a token in each text, wherever a file can hold one.

    Parameters
    ----------
    data
        A valid explicit little endian file.
    tokens
        Give the words.
    every
        In all text elements of the standard; else in some of each group.
    fault
        Keyword of an element that the reader needs and that gets a token too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        meta, body = _raw(data)
        for tag, (vr, *_, keyword) in DicomDictionary.items():
            group = tag >> 16
            if vr in _STRINGS and keyword not in _READ and group not in (0, 2, 4) and (every or tag % 7 == 0):
                body[tag] = (vr, tokens.new().encode())
        for mask, (vr, *_) in RepeatersDictionary.items():
            if vr in _STRINGS and mask[:2] in ("50", "60"):
                body[int(mask.replace("xx", "02"), 16)] = (vr, tokens.new().encode())
        for tag, vr in (
            (0x60020022, "LO"),
            (0x60024000, "LT"),
            (0x00091010, "UN"),
            (0x00091011, "OB"),
            (0x00091012, "LT"),
        ):
            body[tag] = (vr, tokens.new().encode())
        body[0x00090010] = ("LO", tokens.new().encode())
        body[0x00110010] = ("LO", tokens.new().encode())
        body[0x00111001] = ("SQ", _item(_element(0x00100010, "PN", tokens.new().encode())))
        nested = _element(0x00100010, "PN", tokens.new().encode()) + _element(
            0x00400275, "SQ", _item(_element(0x00081030, "LO", tokens.new().encode()))
        )
        body[0x00081140] = ("SQ", _item(nested))
        body[0xFFFCFFFC] = ("OB", tokens.new().encode())
        for tag, vr in (
            (0x00020013, "SH"), (0x00020016, "AE"), (0x00020017, "AE"), (0x00020018, "AE"), (0x00020100, "UI"),
            (0x00020102, "OB"),
        ):  # fmt: skip
            meta[tag] = (vr, tokens.new().encode())
        if fault == "TransferSyntaxUID":
            meta[0x00020010] = ("UI", b"1.2." + tokens.new().encode())
        elif fault and fault != BEHIND:
            tag = int(pydicom.tag.Tag(fault))
            vr = dictionary_VR(tag).split()[0]
            body[tag] = (vr, tokens.new().encode()[: 2 if vr == "US" else None])
        vr, pixels = body[0x7FE00010]
        body[0x7FE00010] = (vr, pixels + (tokens.new() * 2).encode())
    preamble = " ".join(tokens.new() for _ in range(14)).encode().ljust(128, b"\0")
    head = b"".join(_element(tag, *meta[tag]) for tag in sorted(meta) if tag != 0x00020000)
    rest = b"".join(_element(tag, *body[tag]) for tag in sorted(body))
    behind = tokens.new().encode() if fault == BEHIND else b""  # no DICOM any more
    return preamble + b"DICM" + _element(0x00020000, "UL", struct.pack("<I", len(head))) + head + rest + behind


def _item(content: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def planted_nifti(values: np.ndarray, tokens: Tokens, affine_ras: np.ndarray | None = None, **fields: object) -> bytes:
    """A NIfTI with tokens in each text of its header, in extensions of several kinds, and behind the voxels."""
    extensions = b""
    for code in (0, 2, 4, 6, 8, 18, 30, 44):  # DICOM, AFNI, comment, XCEDE, ... (nifti1.h)
        extensions += struct.pack("<II", 32, code) + tokens.new().encode().ljust(24, b"\0")
    texts = {"descrip": 80, "aux_file": 24, "intent_name": 16, "db_name": 18, "data_type": 10}
    header = {
        name: " ".join(tokens.new() for _ in range(max(1, size // 10))).encode()[:size] for name, size in texts.items()
    }
    data = nifti_bytes(values, affine_ras, {**header, "vox_offset": 352 + len(extensions), **fields})
    return data[:348] + b"\1\0\0\0" + extensions + data[352:] + " ".join(tokens.new() for _ in range(8)).encode()


def planted_gzip(data: bytes, tokens: Tokens) -> bytes:
    """A gzip with tokens in its extra field, file name and comment (RFC 1952, 2.3)."""
    extra = b"Ap" + struct.pack("<H", 8) + tokens.new().encode()
    head = b"\x1f\x8b\x08\x1c" + bytes(6) + struct.pack("<H", len(extra)) + extra
    head += tokens.new().encode() + b"\0" + tokens.new().encode() + b"\0"
    return head + gzip.compress(data, mtime=0)[10:-8] + struct.pack("<II", zlib.crc32(data), len(data))


def planted_zip(path: Path, entries: dict[str, bytes], tokens: Tokens) -> None:
    """A zip with tokens in its comment, and in the comment and the extra field of each entry."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = tokens.new().encode()
        for name, data in entries.items():
            info = zipfile.ZipInfo(name)
            info.comment = tokens.new().encode()
            info.extra = struct.pack("<HH", 0x7075, 8) + tokens.new().encode()
            archive.writestr(info, data)
