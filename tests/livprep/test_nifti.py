"""NIfTI: gzip to its last byte, headers of all kinds, values and labels; damaged ones refused."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from building import REF, code_of, nifti_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from test_geometry import SIGNED_PERMUTATIONS

from livprep.errors import SourceError
from livprep.formats import nifti
from livprep.formats.nifti import encode, gunzip, read_nifti, to_hu, to_labels, write_labels, write_nifti
from livprep.geometry import Geometry

VALUES = np.arange(-30, 30, dtype=np.int16).reshape(3, 4, 5)


def fault(code: str, message: str, data: bytes) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        to_hu(REF, read_nifti(REF, data))
    assert caught.value.code == code


# --- gzip -------------------------------------------------------------------------------------------------------

CONTENT = np.random.default_rng(0).integers(0, 9, 60_000).astype(np.uint8).tobytes()
PACKED = gzip.compress(CONTENT, mtime=0)  # the same test ids in every worker


@given(st.binary(max_size=3000), st.integers(1, 9))
def test_gzip_comes_back(content: bytes, level: int) -> None:
    assert gunzip(REF, gzip.compress(content, level)) == content


def test_gzip_of_several_members_and_padding_is_one_file() -> None:
    assert gunzip(REF, gzip.compress(b"abc") + gzip.compress(b"def") + bytes(512)) == b"abcdef"


def test_gzip_larger_than_a_step_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nifti, "_STEP", 1000)
    assert gunzip(REF, PACKED + PACKED + bytes(300)) == CONTENT + CONTENT


@given(st.integers(1, len(PACKED) - 1))
@settings(max_examples=300)
def test_truncated_gzip_is_always_refused(length: int) -> None:
    with pytest.raises(SourceError, match=r"image_0: the gzip stream (ends early|is damaged)") as caught:
        gunzip(REF, PACKED[:length])
    assert caught.value.code == "GZIP_CORRUPT"


@given(st.integers(0, len(PACKED) - 1), st.integers(0, 7))
@settings(max_examples=400)
def test_a_flipped_bit_in_gzip_never_passes(offset: int, bit: int) -> None:
    data = bytearray(PACKED)
    data[offset] ^= 1 << bit
    if offset >= 10:
        assert code_of(lambda: gunzip(REF, bytes(data))) == "GZIP_CORRUPT"
    elif not code_of(lambda: gunzip(REF, bytes(data))):
        # Time, operating system and flags of the member's header hold no data (RFC 1952, 2.3).
        assert gunzip(REF, bytes(data)) == CONTENT


@pytest.mark.parametrize("tail", [b"x", b"\0\0x", b"\x1f\x8b", bytes(10) + PACKED[:50]])
def test_rubbish_after_gzip_is_refused(tail: bytes) -> None:
    with pytest.raises(SourceError, match="gzip stream") as caught:
        gunzip(REF, PACKED + tail)
    assert caught.value.code == "GZIP_CORRUPT"


def test_wrong_length_in_the_trailer_is_refused() -> None:
    data = PACKED[:-4] + (len(CONTENT) + 1).to_bytes(4, "little")
    with pytest.raises(SourceError, match="damaged"):
        gunzip(REF, data)


def test_gzip_beyond_the_limit_is_refused() -> None:
    with pytest.raises(SourceError, match="expands beyond 50000 bytes") as caught:
        gunzip(REF, gzip.compress(bytes(10_000_000)), limit=50_000)
    assert caught.value.code == "GZIP_CORRUPT"


# --- geometry and values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", SIGNED_PERMUTATIONS)
def test_written_grids_come_back(direction: tuple) -> None:
    geometry = Geometry((3, 4, 5), (2.5, 0.8, 0.7), (-12.5, 30.25, 8.0), direction)
    image = read_nifti(REF, encode(VALUES, geometry))
    assert image.geometry.same_grid(geometry)
    assert image.notes == ()
    np.testing.assert_array_equal(to_hu(REF, image), VALUES)


def test_our_files_read_the_same_in_nibabel_and_simpleitk(tmp_path: Path) -> None:
    import SimpleITK as sitk

    geometry = Geometry((3, 4, 5), (2.5, 0.8, 0.7), (-12.5, 30.0, 8.0), SIGNED_PERMUTATIONS[10])
    for name in ("a.nii", "a.nii.gz"):
        write_nifti(tmp_path / name, VALUES, geometry)
        loaded = nib.load(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(loaded.dataobj).T, VALUES)
        np.testing.assert_allclose(loaded.affine, geometry.affine_ras, atol=1e-5)
        image = sitk.ReadImage(tmp_path / name)
        np.testing.assert_allclose(image.GetDirection(), np.ravel(geometry.direction), atol=1e-6)
        np.testing.assert_allclose(image.GetOrigin(), geometry.origin_mm, atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii", "a.nii.gz"]


def test_writing_is_reproducible_and_replaces(tmp_path: Path) -> None:
    geometry = Geometry((3, 4, 5), (2.5, 0.8, 0.7))
    labels = (VALUES > 0).astype(np.uint8)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, VALUES, geometry)
        write_labels(tmp_path / name, labels, geometry)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    image = read_nifti(REF, (tmp_path / "a.nii.gz").read_bytes())
    np.testing.assert_array_equal(to_labels(REF, image, (0, 1)), labels)


def test_a_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = Geometry((3, 4, 5), (2.5, 0.8, 0.7))
    write_nifti(tmp_path / "a.nii", VALUES, geometry)
    before = (tmp_path / "a.nii").read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nifti.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_nifti(tmp_path / "a.nii", VALUES + 1, geometry)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]
    assert (tmp_path / "a.nii").read_bytes() == before


def test_header_carries_no_text() -> None:
    header = nib.Nifti1Header(encode(VALUES, Geometry((3, 4, 5), (2.5, 0.8, 0.7)))[:348])
    for name in ("descrip", "aux_file", "intent_name", "db_name"):
        assert bytes(header[name]).strip(b"\0") == b""


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "i8", "f4", "f8"])
def test_types_byte_orders_and_versions(kind: type, order: str, dtype: str) -> None:
    values = np.clip(VALUES, 0, 29).astype(dtype)
    image = kind(values.T, np.diag([-0.7, -0.8, 2.5, 1]), dtype=np.dtype(dtype))
    header = image.header.as_byteswapped(order)
    header.set_data_dtype(np.dtype(order + dtype))
    buffer = io.BytesIO()
    header["vox_offset"] = 352 if kind is nib.Nifti1Image else 544
    header["magic"] = b"n+1" if kind is nib.Nifti1Image else header["magic"]
    header.write_to(buffer)
    data = buffer.getvalue().ljust(int(header["vox_offset"]), b"\0") + values.astype(order + dtype).tobytes()
    result = read_nifti(REF, data)
    assert result.geometry.orientation == "LPS"
    np.testing.assert_array_equal(to_hu(REF, result), np.clip(VALUES, 0, 29))


def test_scaling_is_applied_and_rounded() -> None:
    hu = to_hu(REF, read_nifti(REF, nifti_bytes(VALUES, fields={"scl_slope": 0.5, "scl_inter": -10.25})))
    np.testing.assert_array_equal(hu, np.rint(VALUES * 0.5 - 10.25))


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_a_slope_that_is_none_means_no_scaling(slope: float) -> None:
    hu = to_hu(REF, read_nifti(REF, nifti_bytes(VALUES, fields={"scl_slope": slope, "scl_inter": 7})))
    np.testing.assert_array_equal(hu, VALUES)


def test_sform_and_qform_that_differ_are_told() -> None:
    mirrored = {
        "qform_code": 1,
        "quatern_b": 0.0,
        "quatern_c": 1.0,
        "quatern_d": 0.0,
        "pixdim": [1, 0.7, 0.8, 2, 0, 0, 0, 0],
    }
    (note,) = read_nifti(REF, nifti_bytes(VALUES, fields=mirrored)).notes
    assert note.code == "NIFTI_FORMS"
    for unset in ({**mirrored, "qform_code": 0}, {**mirrored, "quatern_b": 3.0}, {}):
        assert read_nifti(REF, nifti_bytes(VALUES, fields=unset)).notes == ()


def test_sform_is_taken_before_qform() -> None:
    header = nib.Nifti1Header(nifti_bytes(VALUES)[:348])
    header.set_sform(np.diag([0.7, -0.8, 2.0, 1]), code=2)
    image = read_nifti(REF, header.binaryblock + bytes(4) + VALUES.tobytes())
    assert image.geometry.orientation == "RPS"
    header["sform_code"] = 0
    assert read_nifti(REF, header.binaryblock + bytes(4) + VALUES.tobytes()).geometry.orientation == "RAS"


def test_without_affine_the_orientation_is_assumed_and_noted() -> None:
    image = read_nifti(REF, nifti_bytes(VALUES, fields={"sform_code": 0, "qform_code": 0}))
    ((note,), geometry) = image.notes, image.geometry
    assert (note.code, geometry.spacing_mm) == ("NIFTI_NO_AFFINE", (2.0, 0.8, 0.7))
    assert "/" not in note.detail  # it is stored with the case


def test_trailing_axes_of_one_are_no_axes() -> None:
    data = nifti_bytes(VALUES, fields={"dim": [5, 5, 4, 3, 1, 1, 1, 1]})
    assert read_nifti(REF, data).geometry.shape_zyx == (3, 4, 5)


def test_extensions_are_skipped() -> None:
    data = nifti_bytes(VALUES, fields={"vox_offset": 352 + 1024})
    data = data[:348] + b"\1\0\0\0" + bytes(1024) + data[352:]
    np.testing.assert_array_equal(to_hu(REF, read_nifti(REF, data)), VALUES)


# --- each fault has its code ------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\x5c\1\0\0", b"nothing of the kind" * 40, nifti_bytes(VALUES)[:200]])
def test_files_that_are_no_nifti(data: bytes) -> None:
    fault("NIFTI_HEADER", r"no NIfTI header \(expected a size of 348 or 540 bytes\)", data)


@pytest.mark.parametrize(
    ("dim", "found"),
    [
        ([4, 5, 4, 3, 2, 1, 1, 1], r"\(5, 4, 3, 2\)"),
        ([3, 5, 4, 0, 1, 1, 1, 1], r"\(5, 4, 0\)"),
        ([3, 5, -4, 3, 1, 1, 1, 1], r"\(5, -4, 3\)"),
        ([3, 5, 4, 30000, 1, 1, 1, 1], r"\(5, 4, 30000\)"),
        ([0, 5, 4, 3, 1, 1, 1, 1], ""),
        ([-1, 5, 4, 3, 1, 1, 1, 1], ""),
        ([9, 5, 4, 3, 1, 1, 1, 1], ""),
    ],
)
def test_dimensions_that_are_no_volume(dim: list[int], found: str) -> None:
    fault("NIFTI_DIM", f"dimensions {found}", nifti_bytes(VALUES, fields={"dim": dim}))


@pytest.mark.parametrize("code", [0, 1, 32, 128, 1792, 999])
def test_types_that_are_no_scan(code: int) -> None:
    with pytest.raises(SourceError, match="image_0") as caught:
        read_nifti(REF, nifti_bytes(VALUES, fields={"datatype": code}))
    assert caught.value.code == "NIFTI_HEADER"


def test_a_small_file_that_claims_much_allocates_nothing() -> None:
    data = nifti_bytes(VALUES, fields={"dim": [3, 4096, 4096, 4096, 1, 1, 1, 1], "datatype": 64})
    fault("NIFTI_SHORT", f"holds {len(data)} bytes, expected {8 * 4096**3} for", data)


def test_truncated_voxels() -> None:
    fault("NIFTI_SHORT", r"holds 471 bytes, expected 120 for \(5, 4, 3\) from byte 352", nifti_bytes(VALUES)[:-1])


@pytest.mark.parametrize("offset", [0, -8, 340, np.nan, np.inf, -np.inf, 1e30])
def test_voxels_that_begin_nowhere(offset: float) -> None:
    with pytest.raises(SourceError, match="image_0") as caught:
        read_nifti(REF, nifti_bytes(VALUES, fields={"vox_offset": offset}))
    assert caught.value.code in ("NIFTI_SHORT", "NIFTI_HEADER")


SHEARED = np.diag([0.7, 0.8, 2.0, 1.0])
SHEARED[0, 1] = 0.1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"srow_x": [np.nan, 0, 0, 0]}, "singular or not finite"),
        ({"srow_z": [0, 0, 0, 0]}, "singular or not finite"),
        ({"srow_x": [0.7, 0.1, 0, 0]}, "sheared by more than 0.001"),
        ({"srow_x": [0.9, 0, 0, 0]}, "but pixdim says"),
        ({"pixdim": [1, 0.7, 0.8, 2.1, 0, 0, 0, 0]}, "but pixdim says"),
        ({"srow_x": [0.7, 0, 0, np.inf]}, "singular or not finite"),
        ({"sform_code": 0, "quatern_b": 3.0}, "affine"),
        ({"sform_code": 0, "pixdim": [1, np.nan, 0.8, 2, 0, 0, 0, 0]}, "singular or not finite"),
        ({"sform_code": 0, "qform_code": 0, "pixdim": [1, 0, 0.8, 2, 0, 0, 0, 0]}, "singular or not finite"),
    ],
)
def test_affines_that_cannot_be(fields: dict, message: str) -> None:
    fault("NIFTI_AFFINE", message, nifti_bytes(VALUES, fields=fields))


@pytest.mark.parametrize(
    "values", [VALUES + 32760, (VALUES - 32760).astype(np.int32), np.full((3, 4, 5), np.nan, np.float32)]
)
def test_values_outside_int16_are_refused(values: np.ndarray) -> None:
    wide = values.astype(np.int32) if values.dtype.kind == "i" else values
    wide = np.where(VALUES > 0, VALUES.astype(np.int32) + 32760, 0).astype(np.int32) if wide.dtype == np.int32 else wide
    fault("HU_RANGE", "expected finite HU within int16", nifti_bytes(wide))


@pytest.mark.parametrize("fields", [{"scl_slope": 1e30}, {"scl_slope": 2, "scl_inter": 32740}])
def test_scaled_values_outside_int16_are_refused(fields: dict) -> None:
    fault("HU_RANGE", "expected finite HU within int16", nifti_bytes(VALUES, fields=fields))


def test_a_single_infinite_voxel_is_refused() -> None:
    values = VALUES.astype(np.float32)
    values[1, 2, 3] = np.inf
    values[2, 0, :3] = np.nan
    fault("HU_RANGE", "4 of 60 not finite, expected finite HU", nifti_bytes(values))


# --- labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_labels_of_any_type_are_read(dtype: type) -> None:
    labels = (np.arange(60).reshape(3, 4, 5) % 3).astype(dtype)
    out = to_labels(REF, read_nifti(REF, nifti_bytes(labels)), (0, 1, 2))
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, labels)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(3, np.uint8), (3, np.int16), (-1, np.int16), (0.5, np.float32), (np.nan, np.float32), (1e9, np.float64)],
)
def test_unknown_label_values_are_refused(value: float, dtype: type) -> None:
    labels = np.zeros((3, 4, 5), dtype)
    labels[1, 1, 1] = value
    with pytest.raises(SourceError, match=r"besides the expected \[0, 1, 2\]") as caught:
        to_labels(REF, read_nifti(REF, nifti_bytes(labels)), (0, 1, 2))
    assert caught.value.code == "LABEL_UNKNOWN"


def test_scaled_labels_are_scaled() -> None:
    labels = (np.arange(60).reshape(3, 4, 5) % 3).astype(np.uint8)
    image = read_nifti(REF, nifti_bytes(labels * 10, fields={"scl_slope": np.float32(0.1)}))
    with pytest.raises(SourceError, match="label values"):  # 0.1 is no exact float32, so neither are the labels
        to_labels(REF, image, (0, 1, 2))
    image = read_nifti(REF, nifti_bytes(labels * 4, fields={"scl_slope": 0.25}))
    np.testing.assert_array_equal(to_labels(REF, image, (0, 1, 2)), labels)


# --- damaged headers --------------------------------------------------------------------------------------------

GOOD = nifti_bytes(VALUES)
FLOATS = nifti_bytes(VALUES.astype(np.float32), fields={"scl_slope": 2.0, "scl_inter": 1.0})


def all_of(data: bytes) -> None:
    """Read a file in every way that there is."""
    image = read_nifti(REF, data)
    assert to_hu(REF, image).shape == image.geometry.shape_zyx
    to_labels(REF, image, (0, 1, 2))


@given(
    st.sampled_from([GOOD, FLOATS]),
    st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), min_size=1, max_size=4),
)
@settings(max_examples=1000)
def test_mutated_headers_are_read_or_refused(source: bytes, changes: list[tuple[int, int]]) -> None:
    data = bytearray(source)
    for offset, value in changes:
        data[offset] = value
    code = code_of(lambda: all_of(bytes(data)))
    assert not code or code.startswith(("NIFTI_", "HU_", "LABEL_", "GZIP_"))


FIELDS = ["dim", "pixdim", "vox_offset", "scl_slope", "scl_inter", "qform_code", "sform_code", "quatern_b", "quatern_c"]
FIELDS += ["quatern_d", "qoffset_x", "srow_x", "srow_y", "srow_z", "datatype", "bitpix"]
ODD = [0, 1, -1, 3, 7, 8, 127, 255, 32767, -32768, 1e-40, 1e38, -1e38, float("nan"), float("inf")]


@given(
    st.sampled_from([GOOD, FLOATS]),
    st.lists(st.tuples(st.sampled_from(FIELDS), st.sampled_from(ODD), st.integers(0, 7)), min_size=1, max_size=3),
)
@settings(max_examples=1000)
def test_odd_header_fields_are_read_or_refused(source: bytes, changes: list[tuple[str, float, int]]) -> None:
    header = nib.Nifti1Header(source[:348], check=False)
    for name, value, index in changes:
        field = header[name]
        if field.dtype.kind == "i" and not np.isfinite(value):
            continue
        value = np.clip(value, -32768, 32767) if field.dtype.kind == "i" else value
        if field.shape:
            field[index % field.size] = value
        else:
            header[name] = value
    code = code_of(lambda: all_of(header.binaryblock + source[348:]))
    assert not code or code.startswith(("NIFTI_", "HU_", "LABEL_"))


@given(st.binary(max_size=600), st.booleans())
@settings(max_examples=300)
def test_arbitrary_bytes_are_refused(data: bytes, like_gzip: bool) -> None:
    with pytest.raises(SourceError):
        read_nifti(REF, (b"\x1f\x8b" + data) if like_gzip else data)
    with pytest.raises(SourceError):
        read_nifti(REF, zlib.compress(data))
