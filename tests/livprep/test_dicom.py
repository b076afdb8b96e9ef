"""DICOM series: values, order, geometry, and each fault with its own code."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable

import numpy as np
import pydicom
import pytest
from building import REF, assembled, code_of, edited, pixels_of, plain_slice
from hypothesis import given, settings
from hypothesis import strategies as st

from livprep.cases import FileRef
from livprep.errors import SourceError
from livprep.formats.dicom import read_series
from livprep.formats.dicom_header import (
    MAX_INFLATED_BYTES,
    begins_like_dicom,
    is_dicom,
    patient_number,
    peek,
    with_preamble,
)
from livprep.formats.hashing import HashingReader


def fault(code: str, message: str, files: list[bytes]) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        assembled(files)
    assert caught.value.code == code


def series(count: int = 4, dz: float = 2.0) -> list[bytes]:
    return [plain_slice(k, dz=dz) for k in range(count)]


# --- what is read -----------------------------------------------------------------------------------------------


def test_a_plain_series_is_read_with_its_geometry() -> None:
    result = assembled(series())
    assert (result.hu.shape, result.hu.dtype) == ((4, 6, 5), np.int16)
    assert result.hu[:, 0, 0].tolist() == [-1024, -924, -824, -724]
    assert result.geometry.spacing_mm == (2.0, 0.8, 0.7)
    assert (result.geometry.origin_mm, result.geometry.orientation, result.notes) == ((0, 0, 0), "LPS", ())


def test_slices_are_ordered_by_position_not_by_name_or_number() -> None:
    files = [edited(data, InstanceNumber=99 - k) for k, data in enumerate(series())]
    result = assembled([files[2], files[0], files[3], files[1]])
    assert result.hu[:, 0, 0].tolist() == [-1024, -924, -824, -724]


def test_feet_first_numbering_still_runs_to_the_head() -> None:
    files = [edited(data, ImagePositionPatient=[0, 0, -2 * k]) for k, data in enumerate(series())]
    result = assembled(files)
    assert result.hu[:, 0, 0].tolist() == [-724, -824, -924, -1024]
    assert result.geometry.origin_mm == (0, 0, -6)


def test_coronal_series_keep_their_own_axes() -> None:
    files = [
        edited(data, ImageOrientationPatient=[1, 0, 0, 0, 0, -1], ImagePositionPatient=[5, 2 * k, 9])
        for k, data in enumerate(series())
    ]
    result = assembled(files)
    assert result.geometry.orientation == "LIP"  # along the cross product of row and column
    assert result.geometry.origin_mm == (5, 0, 9)
    assert result.hu[:, 0, 0].tolist() == [-1024, -924, -824, -724]


def test_cosines_of_few_digits_do_not_stretch_the_spacing() -> None:
    """A plane that is turned by 22 degrees, as scanners write it: to four digits."""
    row, column, normal = np.eye(3)[0], np.array([0, 0.9272, -0.3746]), np.array([0, 0.3746, 0.9272])
    files = [
        edited(
            data,
            ImageOrientationPatient=[*row, *column],
            ImagePositionPatient=[f"{v:.4f}" for v in 2.5 * k * normal],
        )
        for k, data in enumerate(series())
    ]
    result = assembled(files)
    np.testing.assert_allclose(result.geometry.spacing_mm[1:], (0.8, 0.7), rtol=1e-7)
    assert result.geometry.spacing_mm[0] == pytest.approx(2.5, abs=1e-4)


def test_spacing_text_of_float32_becomes_its_shortest_decimal() -> None:
    files = [
        edited(
            data,
            PixelSpacing=["0.569999992847443", "0.569999992847443"],
            ImagePositionPatient=["0", "0", str(k * 1.6000000238418579)[:16]],
            SliceThickness="1.60000002384185",
        )
        for k, data in enumerate(series())
    ]
    assert assembled(files).geometry.spacing_mm == (1.6, 0.57, 0.57)


def test_slope_and_intercept_are_applied_slice_by_slice() -> None:
    data = plain_slice(0, np.arange(30, dtype=np.int16).reshape(6, 5))
    assert pixels_of(edited(data, RescaleIntercept=-1024)).ravel()[:3].tolist() == [-1024, -1023, -1022]
    halves = pixels_of(edited(data, RescaleSlope="0.5", RescaleIntercept="-10.25"))
    assert halves.ravel()[:4].tolist() == [-10, -10, -9, -9]
    absent = edited(data, RescaleSlope=None, RescaleIntercept=None)
    assert pixels_of(absent).ravel()[:3].tolist() == [0, 1, 2]


def test_unsigned_8_bit_masks_and_unsigned_16_bit_are_read() -> None:
    mask = np.zeros((6, 5), np.uint8)
    mask[2, 3] = 255
    np.testing.assert_array_equal(pixels_of(plain_slice(0, mask)), mask)
    unsigned = edited(plain_slice(0, np.full((6, 5), -1, np.int16)), PixelRepresentation=0, RescaleIntercept=-40000)
    assert (pixels_of(unsigned) == 65535 - 40000).all()


def test_bits_above_the_stored_ones_are_no_value() -> None:
    """PS3.5 8.1.1: of 16 allocated bits 12 hold the value; overlays or rubbish may lie above them."""
    stored = np.array([0, 5, 0x0FFF, 0x0800, 0xF005, 0xF800], np.uint16)
    pixels = np.resize(stored, (6, 5))
    data = plain_slice(0, pixels.view(np.int16))
    unsigned = edited(data, PixelRepresentation=0, BitsStored=12, HighBit=11)
    assert pixels_of(unsigned).ravel()[:6].tolist() == [0, 5, 4095, 2048, 5, 2048]
    signed = edited(data, PixelRepresentation=1, BitsStored=12, HighBit=11)
    assert pixels_of(signed).ravel()[:6].tolist() == [0, 5, -1, -2048, 5, -2048]


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"])
def test_other_uncompressed_syntaxes_are_read(syntax: str) -> None:
    pixels = np.arange(30, dtype=np.int16).reshape(6, 5) - 20
    dataset = pydicom.dcmread(io.BytesIO(plain_slice(0, pixels)))
    big = syntax == "1.2.840.10008.1.2.2"
    if big:
        dataset.PixelData = pixels.astype(">i2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    pydicom.dcmwrite(
        buffer, dataset, implicit_vr=syntax == "1.2.840.10008.1.2", little_endian=not big, force_encoding=True
    )
    np.testing.assert_array_equal(pixels_of(buffer.getvalue()), pixels)


def deflated(dataset: pydicom.Dataset) -> bytes:
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


@pytest.mark.parametrize("read", [lambda ref, data: pixels_of(data), peek])
def test_a_small_file_that_inflates_to_much_is_refused_unread(read: Callable[[FileRef, bytes], object]) -> None:
    dataset = pydicom.dcmread(io.BytesIO(plain_slice()))
    assert read(REF, deflated(dataset)) is not None
    dataset.add_new(0x00091010, "OB", bytes(MAX_INFLATED_BYTES))
    data = deflated(dataset)
    assert len(data) < 100_000
    with pytest.raises(SourceError, match="image_0: deflated, and beyond 67108864 bytes") as caught:
        read(REF, data)
    assert caught.value.code == "DICOM_SYNTAX"
    hidden = data.replace(b"\2\0\x10\0UI", b"\2\0\x10\0UX", 1)
    with pytest.raises(SourceError):
        read(REF, hidden)


def test_lossless_compression_is_decoded() -> None:
    pixels = np.arange(30, dtype=np.int16).reshape(6, 5) - 20
    dataset = pydicom.dcmread(io.BytesIO(plain_slice(0, pixels)))
    dataset.compress("1.2.840.10008.1.2.5")  # RLE, which pydicom codes itself
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    np.testing.assert_array_equal(pixels_of(buffer.getvalue()), pixels)


def test_a_single_slice_is_as_thick_as_it_says() -> None:
    assert assembled(series(1)).geometry.spacing_mm == (2.0, 0.8, 0.7)


def test_read_series_hashes_what_it_reads(tmp_path) -> None:
    refs = []
    for k, data in enumerate(series()):
        (tmp_path / f"image_{k}").write_bytes(data)
        refs.append(FileRef(str(tmp_path / f"image_{k}")))
    reader = HashingReader()
    assert read_series(reader, "image", refs).hu.shape == (4, 6, 5)
    assert sorted(reader.digests) == [f"image/image_{k}" for k in range(4)]
    assert reader.bytes_read == sum(map(len, series()))
    assert reader.digest() != HashingReader().digest()


def test_numbers_that_only_hint_may_be_anything() -> None:
    hints = ("InstanceNumber", "AcquisitionNumber", "ImagesInAcquisition", "NumberOfSeriesRelatedInstances")
    files = []
    for data in series():
        dataset = pydicom.dcmread(io.BytesIO(data))
        for keyword in hints:
            tag = pydicom.datadict.tag_for_keyword(keyword)
            dataset[tag] = pydicom.DataElement(tag, "LO", "none")
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        spoiled = buffer.getvalue()
        for keyword in hints:
            tag = pydicom.datadict.tag_for_keyword(keyword)
            head = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
            spoiled = spoiled.replace(head + b"LO", head + b"IS")
        files.append(spoiled)
    assert assembled(files).hu.shape == (4, 6, 5)


def test_functional_groups_of_many_frames_are_read() -> None:
    count = 300
    dataset = pydicom.dcmread(io.BytesIO(plain_slice()))
    dataset.SOPClassUID, dataset.NumberOfFrames = "1.2.840.10008.5.1.4.1.1.2.1", count
    groups = [pydicom.Dataset() for _ in range(count)]
    for k, group in enumerate(groups):
        group.PlanePositionSequence = [pydicom.Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 2 * k]
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.PixelData = b"".join(np.full((6, 5), k, np.int16).tobytes() for k in range(count))
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    assert assembled([buffer.getvalue()]).hu[:, 0, 0].tolist() == list(range(count))


# --- findings that do not stop a series -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("SERIES_UID_MISSING", {"SeriesInstanceUID": ""}),
        ("SERIES_SOP_CLASS", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}),
        ("SERIES_THICKNESS", {"SliceThickness": "3"}),
    ],
)
def test_odd_headers_are_noted(code: str, changes: dict) -> None:
    result = assembled([edited(data, **changes) for data in series()])
    assert [note.code for note in result.notes] == [code]
    assert result.geometry.spacing_mm[0] == 2.0


def test_thickness_may_be_absent() -> None:
    assert assembled([edited(data, SliceThickness=None) for data in series()]).notes == ()


def test_first_instance_number_may_be_anything() -> None:
    files = [edited(data, InstanceNumber=286 - k) for k, data in enumerate(series())]
    assert assembled(files).notes == ()


# --- each fault has its code ------------------------------------------------------------------------------------


def test_missing_inner_slices() -> None:
    files = series(6)
    fault("SERIES_GAP", "4 mm between .* and the next slice, expected 2 mm", files[:2] + files[3:])


def test_uneven_slices() -> None:
    files = series(6)
    files[3] = edited(files[3], ImagePositionPatient=[0, 0, 6.2])
    fault("SERIES_SHIFT", "image_3: 2.2 mm from the next slice, all others 2 mm", files)


def test_small_unevenness_is_tolerated() -> None:
    files = series(6)
    files[3] = edited(files[3], ImagePositionPatient=[0, 0, 6.05])
    assert assembled(files).geometry.spacing_mm[0] == 2.0


def test_duplicate_slices() -> None:
    fault("SERIES_DUPLICATE", "image_1 and /scan/image_4 lie at one position", [*series(), plain_slice(1)])


def test_gantry_tilt() -> None:
    files = [edited(data, ImagePositionPatient=[0, 0.3 * k, 2 * k]) for k, data in enumerate(series())]
    fault("SERIES_TILT", "shift sideways by up to 0.9 mm", files)


def test_one_slice_shifted_in_plane() -> None:
    files = series()
    files[2] = edited(files[2], ImagePositionPatient=[0.5, 0, 4])
    fault("SERIES_SHIFT", "image_2: lies 0.5 mm aside of the other slices", files)


def test_truncated_pixel_data() -> None:
    for missing in (1, 31):
        data = plain_slice()[:-missing]
        fault("PIXELDATA_SHORT", rf"/scan/image_0: holds {60 - missing} pixel bytes, expected 60", [data])
    fault("PIXELDATA_SHORT", "holds 30 pixel bytes, expected 60", [edited(plain_slice(), PixelData=bytes(30))])


def test_missing_pixel_data() -> None:
    fault("PIXELDATA_MISSING", "has no pixel data", [edited(plain_slice(), PixelData=None)])


def test_other_orientation() -> None:
    files = series()
    files[1] = edited(files[1], ImageOrientationPatient=[0.999391, 0.034899, 0, -0.034899, 0.999391, 0])
    fault("SERIES_ORIENTATION", "image_1: its orientation differs", files)


def test_other_pixel_spacing() -> None:
    files = series()
    files[2] = edited(files[2], PixelSpacing=[0.8, 0.71])
    fault("SERIES_SPACING", r"image_2: pixel spacing \(0.8, 0.71\) mm, expected \(0.8, 0.7\)", files)


def test_other_rows() -> None:
    files = series()
    files[3] = plain_slice(3, np.zeros((7, 5), np.int16))
    fault("SERIES_SHAPE", r"image_3: \(7, 5\) pixels, expected \(6, 5\)", files)


def counted(files: list[bytes], images: int, first: int = 0) -> list[bytes]:
    return [edited(data, InstanceNumber=first + k, ImagesInAcquisition=images) for k, data in enumerate(files)]


@pytest.mark.parametrize(("first", "images"), [(0, 5), (1, 5), (2, 5), (1, 90)])
def test_a_missing_end_shows_where_the_header_counts_the_slices(first: int, images: int) -> None:
    files = counted(series(), images, first)
    fault("SERIES_INCOMPLETE", f"image: 4 slices, but the header counts {images}; one end is missing", files)


@pytest.mark.parametrize(("first", "images"), [(267, 400), (40, 3)])
def test_a_part_of_a_counted_series_is_noted_alone(first: int, images: int) -> None:
    (note,) = assembled(counted(series(), images, first)).notes
    assert (note.code, note.detail) == ("SERIES_COUNT", f"image: 4 slices, the header counts {images}")


@pytest.mark.parametrize("kind", ["OD", "MGML", "Z_EFF", "ED", "EDW", "PCT"])
def test_other_quantities_than_hu_are_refused(kind: str) -> None:
    fault("SERIES_RESCALE_TYPE", f"image_2: RescaleType {kind}: the values are .*, expected HU", [
        edited(data, RescaleType=kind if k == 2 else "HU") for k, data in enumerate(series())
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "said"), [("US", "US"), ("HU_MOD", "HU_MOD"), ("hu", None), ("", None), ("Mustermann", "none of")]
)
def test_units_that_may_be_hu_are_taken_as_such(kind: str, said: str | None) -> None:
    notes = assembled([edited(data, RescaleType=kind) for data in series()]).notes
    assert [note.code for note in notes] == (["SERIES_RESCALE_UNIT"] if said else [])
    assert not said or said in notes[0].detail
    assert not any("Mustermann" in note.detail for note in notes)


def test_every_second_slice() -> None:
    files = [edited(plain_slice(k), SliceThickness="2") for k in (0, 2, 4)]
    fault("SERIES_INCOMPLETE", "only every 2. slice is there: .* slices lie 4 mm apart, expected 2 mm", files)


def test_numbers_that_do_not_follow_the_positions() -> None:
    files = [edited(data, InstanceNumber=number) for data, number in zip(series(), (0, 1, 5, 6), strict=True)]
    assert [note.code for note in assembled(files).notes] == ["SERIES_NUMBERING"]


def test_a_slice_that_leaps_by_its_rescale() -> None:
    files = series()
    files[1] = edited(files[1], RescaleIntercept="1024")
    fault("SERIES_RESCALE", "image_1: slope 1 and intercept 1024 make it leap .* expected 1 and 0", files)


def test_slices_on_scales_of_their_own_are_legal() -> None:
    files = [
        edited(plain_slice(k, np.full((6, 5), 100 + k, np.int16)), RescaleIntercept=str(-100 - k)) for k in range(4)
    ]
    result = assembled(files)
    assert [note.code for note in result.notes] == ["SERIES_RESCALE_VARIES"]
    assert not result.hu.any()


def test_another_frame_of_reference() -> None:
    files = [edited(data, FrameOfReferenceUID=f"2.25.{k // 2}") for k, data in enumerate(series())]
    fault("SERIES_FRAME_OF_REFERENCE", "image: its slices have several frames of reference", files)


def test_another_modality() -> None:
    fault("SERIES_MODALITY", "image_0: the modality is not CT", [edited(plain_slice(), Modality="MR")])


def test_localizers_alone(tmp_path) -> None:
    (tmp_path / "image_0").write_bytes(edited(plain_slice(), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    with pytest.raises(SourceError, match="image: found only localizers") as caught:
        read_series(HashingReader(), "image", [FileRef(str(tmp_path / "image_0"))])
    assert caught.value.code == "SERIES_INCOMPLETE"


def padded(k: int, intercept: str) -> bytes:
    pixels = np.full((6, 5), -500, np.int16)
    pixels[0] = -2000
    dataset = pydicom.dcmread(io.BytesIO(edited(plain_slice(k, pixels), RescaleIntercept=intercept)))
    dataset.add_new(0x00280120, "SS", -2000)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def test_padding_is_kept_and_said() -> None:
    files = [padded(k, "-1024") for k in range(2)]
    result = assembled(files)
    assert [str(n) for n in result.notes] == [
        "SERIES_PADDING: image: 10 padding voxels of -3024 HU are kept as they are"
    ]
    assert (result.hu[:, 0] == -3024).all()
    air = [padded(k, "976") for k in range(2)]
    assert assembled(air).notes == ()  # padding of -1024 HU is air to every reader


def test_stored_bits_may_lie_at_the_top() -> None:
    data = plain_slice(0, np.array([[0x7FF7, -16, 0x0010]], np.int16))
    assert pixels_of(edited(data, BitsStored=12, HighBit=15)).tolist() == [[2047, -1, 1]]
    fault("PIXELDATA_BITS", "17 bits up to bit 16 of 16", [edited(plain_slice(), BitsStored=17, HighBit=16)])


def test_8_bit_words_of_big_endian_are_swapped() -> None:
    """PS3.5, 8.2 and A.3: OW of 8 allocated bits travels as 16-bit words."""
    mask = np.arange(30, dtype=np.uint8).reshape(6, 5)
    dataset = pydicom.dcmread(io.BytesIO(plain_slice(0, mask)))
    dataset.PixelData = mask.reshape(-1, 2)[:, ::-1].tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.2"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, implicit_vr=False, little_endian=False, force_encoding=True)
    np.testing.assert_array_equal(pixels_of(buffer.getvalue()), mask)


def test_two_series_in_one_folder() -> None:
    files = series()
    files[3] = edited(files[3], SeriesInstanceUID="2.25.8")
    fault("SERIES_MIXED", "image: 2 series in one folder", files)


def test_no_slices() -> None:
    with pytest.raises(SourceError, match="found no slices") as caught:
        read_series(HashingReader(), "image", ())
    assert caught.value.code == "SERIES_INCOMPLETE"


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
@pytest.mark.parametrize("value", [None, "", ["1", "nan", "1"], ["1"]])
def test_unusable_geometry_tags(keyword: str, value: object) -> None:
    fault("SERIES_TAG", f"image_0: {keyword} is missing or unusable", [edited(plain_slice(), **{keyword: value})])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]}, "no unit vectors"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "at right angles"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.1, 0.995, 0]}, "at right angles"),
        ({"PixelSpacing": [0, 0.7]}, "PixelSpacing is not positive"),
        ({"PixelSpacing": [-0.8, 0.7]}, "PixelSpacing is not positive"),
        ({"PixelSpacing": ["1e-60", 0.7]}, "PixelSpacing is not positive"),
        ({"Rows": 0}, "0 x 5 pixels"),
        ({"Rows": 5000}, "5000 x 5 pixels, expected 1 to 4096"),
        ({"Columns": None}, "6 x 0 pixels"),
        ({"BitsAllocated": 32}, "found 32 bits"),
        ({"BitsAllocated": 1}, "found 1 bits"),
        ({"SamplesPerPixel": 3}, "expected one sample"),
        ({"RescaleSlope": "0"}, "RescaleSlope is 0"),
        ({"SliceThickness": ""}, "a single slice without SliceThickness"),
        ({"SliceThickness": "0"}, "a single slice without SliceThickness"),
        ({"SliceThickness": "nan"}, "a single slice without SliceThickness"),
    ],
)
def test_tags_that_cannot_be(changes: dict, message: str) -> None:
    fault("SERIES_TAG", message, [edited(plain_slice(), **changes)])


@pytest.mark.parametrize(
    "changes",
    [
        {"RescaleSlope": "100"},
        {"RescaleIntercept": "40000"},
        {"RescaleSlope": "nan"},
        {"RescaleIntercept": "nan"},
        {"RescaleSlope": "inf"},
        {"RescaleIntercept": "1e12"},
    ],
)
def test_values_that_are_no_hu(changes: dict) -> None:
    fault("HU_RANGE", "image_0: HU", [edited(plain_slice(k=1), **changes)])


@pytest.mark.parametrize("data", [b"", b"not DICOM at all", b"\0" * 131, plain_slice()[128:]])
def test_files_that_are_no_dicom(data: bytes) -> None:
    fault("DICOM_UNREADABLE", "image_0: no DICOM file", [data])


def test_a_header_cut_short() -> None:
    with pytest.raises(SourceError) as caught:
        pixels_of(plain_slice()[:400])
    assert caught.value.code in ("DICOM_UNREADABLE", "SERIES_TAG")


def test_compression_without_a_decoder_names_the_syntax() -> None:
    dataset = pydicom.dcmread(io.BytesIO(plain_slice()))
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG-2
    dataset.PixelData = pydicom.encaps.encapsulate([b"\0" * 20])
    dataset["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    fault("DICOM_SYNTAX", "MPEG2 Main Profile / Main Level", [buffer.getvalue()])


def test_compressed_frames_of_another_size() -> None:
    dataset = pydicom.dcmread(io.BytesIO(plain_slice()))
    dataset.compress("1.2.840.10008.1.2.5")
    dataset.Rows = 12
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    with pytest.raises(SourceError) as caught:
        pixels_of(buffer.getvalue())
    assert caught.value.code in ("PIXELDATA_SHORT", "PIXELDATA_CODEC")


# --- privacy and names ------------------------------------------------------------------------------------------


def test_no_text_of_the_patient_enters_a_message(caplog: pytest.LogCaptureFixture) -> None:
    token = "TOKEN^Secret"
    marked = {"PatientName": token, "PatientID": token, "StudyDescription": token, "AccessionNumber": token}
    caplog.set_level(logging.DEBUG)
    data = edited(plain_slice(), **marked)
    spoiled = [edited(data, **changes) for changes in ({"Rows": 0}, {"PixelData": None}, {"RescaleSlope": "nan"})]
    spoiled += [data.replace(b"0.8\\0.7", b"TOKEN\\1"), data.replace(b"LO", b"\xff\xff"), data[:-80]]
    for damaged in spoiled:
        with pytest.raises(SourceError) as caught:
            pixels_of(damaged)
        assert "TOKEN" not in f"{caught.value}{caught.value.__cause__}{caplog.text}"


def test_patient_number_comes_from_3dircadbs_name_alone() -> None:
    assert patient_number(plain_slice()) == 1
    for name in ("liver_07^labelled", "Doe^John", "", "liver_123^patient"):
        assert patient_number(edited(plain_slice(), PatientName=name)) is None
    assert patient_number(b"rubbish") is None


def test_peek_tells_series_and_modality() -> None:
    key = peek(REF, edited(plain_slice(), Modality="MR"))
    assert key is not None
    assert (key.uid, key.modality) == ("2.25.7", "MR")
    assert peek(REF, b"text") is None
    report = edited(plain_slice(), Rows=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    assert peek(REF, report.replace(b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.840.10008.5.1.4.1.1.8\0")) is None
    with pytest.raises(SourceError, match="a CT image without Rows"):
        peek(REF, edited(plain_slice(), Rows=None))
    assert is_dicom(plain_slice())
    assert not is_dicom(b"DICM")


def test_data_sets_without_a_preamble_are_told_from_other_files() -> None:
    meta = plain_slice()[132:]
    body = meta[12 + int.from_bytes(meta[8:12], "little") :]
    implicit = b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100" + b"\x08\0\x60\0\2\0\0\0CT"
    for data in (meta, body, implicit):
        assert begins_like_dicom(data[:132])
        assert is_dicom(with_preamble(data))
    for other in (b"", b"\x08\0", b"\x08\0\x05\0", b"text " * 50, b"\x08\0\x05\0" + b"\xff" * 200, bytes(500)):
        assert not begins_like_dicom(other)
        assert with_preamble(other) is other
    key = peek(REF, body)
    assert key == peek(REF, plain_slice())


# --- damaged bytes ----------------------------------------------------------------------------------------------

PLAIN = [plain_slice(k) for k in range(3)]
HEADER = len(PLAIN[0]) - 60


@given(
    st.lists(st.tuples(st.integers(128, HEADER + 10), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 3),
    st.integers(130, len(PLAIN[0])),
)
@settings(max_examples=500)
def test_mutated_slices_are_read_or_refused(changes: list[tuple[int, int]], kind: int, cut: int) -> None:
    data = bytearray(PLAIN[1])
    for offset, value in changes:
        data[offset] = value
    if kind == 0:
        del data[cut:]
    code = code_of(lambda: assembled([PLAIN[0], bytes(data), PLAIN[2]]))
    assert not code or code.startswith(("DICOM_", "SERIES_", "PIXELDATA_", "HU_"))
    assert code_of(lambda: peek(REF, bytes(data))) in ("", "DICOM_UNREADABLE")
