"""Errors carry a code, one line and an exit code, also between processes; findings must have a known code."""

from __future__ import annotations

import pickle

import pytest

from livprep.cases import FileRef, Note, printable
from livprep.errors import (
    CODES,
    CatalogError,
    GeometryError,
    LivError,
    RunError,
    SourceError,
    StoreError,
    UsageError,
)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (UsageError, ValueError),
        (SourceError, ValueError),
        (StoreError, OSError),
        (CatalogError, ValueError),
        (RunError, RuntimeError),
        (LivError, Exception),
    ],
)
def test_errors_are_builtins_too_and_pickle(kind: type[LivError], builtin: type[Exception]) -> None:
    error = kind("IO", "case: found 1, expected 2 mm")
    assert isinstance(error, LivError)
    assert isinstance(error, builtin)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.code, again.message, str(again)) == (kind, "IO", error.message, error.message)
    assert again.exit_code == 74


def test_a_geometry_error_needs_no_code() -> None:
    assert (GeometryError("x").code, GeometryError("x").exit_code) == ("GEOMETRY", 3)


def test_exit_codes_are_those_of_the_commands() -> None:
    assert {info.exit_code for info in CODES.values()} <= {0, 1, 2, 3, 4, 70, 74, 75}
    for code, info in CODES.items():
        assert code.isupper()
        assert info.meaning.endswith(".")
        assert info.remedy.endswith(".")
    for prefix in ("MASK_", "LABEL_", "SERIES_", "NIFTI_", "GZIP_", "HU_", "ARCHIVE_", "PIXELDATA_", "DICOM_"):
        assert {CODES[code].exit_code for code in CODES if code.startswith(prefix)} <= {0, 3}


def test_a_finding_has_a_known_code() -> None:
    assert str(Note("REPAIRED", "lits-028: identity header")) == "REPAIRED: lits-028: identity header"
    with pytest.raises(KeyError, match="unknown code TYPO"):
        Note("TYPO", "")


def test_references_name_the_file_in_the_zip() -> None:
    ref = FileRef("/data/a.zip", ("b/inner.zip", "c/image_0"))
    assert (ref.name, str(ref)) == ("image_0", "/data/a.zip!/b/inner.zip!/c/image_0")
    assert FileRef("/data/volume-1.nii").name == "volume-1.nii"


def test_names_from_outside_are_made_printable() -> None:
    assert printable("scan \u00e9.nii") == "scan \u00e9.nii"
    assert printable("a\nb\x1b[2J\udcff") == r"a\nb\x1b[2J\udcff"
