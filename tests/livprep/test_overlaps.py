"""The same scan under another name is found from its voxels, whatever its orientation, header, file or range."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import numpy as np
import pytest
from building import nifti_bytes
from hypothesis import given
from hypothesis import strategies as st

from livprep.catalog import load_catalog
from livprep.division import store_overlaps
from livprep.fingerprint import fingerprint
from livprep.overlaps import Duplicate, find_overlaps
from livprep.phantom import make_phantom
from livprep.prepare import Preparation, prepare
from livprep.sources import discover, read_case
from livprep.store import open_store
from livprep.synthesis import ircadb_phantom, write_lits

FLIPS = list(itertools.product([False, True], repeat=3))


@pytest.fixture(scope="module")
def hu() -> np.ndarray:
    """A phantom's HU."""
    return make_phantom((24, 48, 40), (6.0, 8.0, 9.0), patient="p", seed=1).hu


def flipped(hu: np.ndarray, flips: tuple[bool, bool, bool]) -> np.ndarray:
    return hu[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_turning_a_scan_keeps_its_fingerprint(hu: np.ndarray, flips: tuple, order: tuple) -> None:
    assert fingerprint(flipped(hu, flips).transpose(order)) == fingerprint(hu)


@pytest.mark.parametrize(
    "change",
    [
        lambda hu: np.clip(hu, -1024, 1023),
        lambda hu: np.clip(hu, -1000, 1000),
        lambda hu: np.clip(hu, -1024, 3071),
        lambda hu: np.where(hu < -990, -2000, hu),
        lambda hu: np.where(hu < -990, -1024, hu),
        lambda hu: np.where(hu > 1000, 3071, hu),
        lambda hu: hu.astype(np.float32),
    ],
)
def test_cutting_the_range_off_keeps_the_fingerprint(hu: np.ndarray, change: object) -> None:
    assert fingerprint(change(hu).astype(np.int16)) == fingerprint(hu)


def test_padding_of_either_kind_is_one(hu: np.ndarray) -> None:
    """A scanner writes -2000 outside its circle; a converter makes -1024 of it."""
    padded, cut = hu.copy(), hu.copy()
    padded[:, :4], cut[:, :4] = -2000, -1024
    assert fingerprint(padded) == fingerprint(cut)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("affine", "fields", "dtype"),
    [
        (np.diag([1.0, 1.0, 1.0, 1.0]), {}, np.int16),
        (np.diag([-0.7, -0.8, 2.0, 1.0]), {}, np.int16),
        (np.diag([0.7, 0.8, -2.0, 1.0]), {"descrip": b"another"}, np.float32),
        (None, {"scl_slope": 1.0, "scl_inter": -1024.0}, np.uint16),
        (None, {"scl_slope": 2.0, "scl_inter": 0.0}, np.float64),
    ],
)
def test_header_and_file_form_do_not_matter(
    hu: np.ndarray, tmp_path: Path, suffix: str, affine: np.ndarray | None, fields: dict, dtype: type
) -> None:
    slope, inter = fields.get("scl_slope", 1.0), fields.get("scl_inter", 0.0)
    values = np.clip(hu, -1024, 3071)
    stored = ((values - inter) / slope).astype(dtype)
    data = nifti_bytes(stored, affine, fields)
    (tmp_path / f"scan{suffix}").write_bytes(gzip.compress(data) if suffix == ".nii.gz" else data)
    (case,) = discover([tmp_path], load_catalog(), "any").cases
    read = read_case(case, load_catalog()).volume
    assert fingerprint(read.image.hu) == fingerprint(hu)
    assert fingerprint(prepare(read, Preparation()).image.hu) == fingerprint(hu)


def test_patients_differ(hu: np.ndarray) -> None:
    """Also two reconstructions of one patient, and one slice less."""
    spacing = (6.0, 8.0, 9.0)
    others = [make_phantom(hu.shape, spacing, patient=f"q{k}", seed=1).hu for k in range(4)]
    again = make_phantom(hu.shape, spacing, patient="p", seed=2).hu
    prints = {fingerprint(each) for each in (hu, hu[1:], again, *others)}
    assert len(prints) == 7


# --- pairs

names = st.dictionaries(
    st.integers(0, 99).map(lambda n: f"c{n:02d}"),
    st.tuples(st.sampled_from("pqrs"), st.sampled_from("abcd")),
    min_size=1,
)


@given(names)
def test_every_pair_with_a_common_patient_or_fingerprint_is_named_once(cases: dict[str, tuple[str, str]]) -> None:
    found = find_overlaps({k: v[0] for k, v in cases.items()}, {k: v[1] for k, v in cases.items()})
    expected = {
        (a, b)
        for a, b in itertools.combinations(sorted(cases), 2)
        if any(x == y for x, y in zip(cases[a], cases[b], strict=True))
    }
    assert [(pair.a, pair.b) for pair in found] == sorted(expected)


def test_evidence_says_what_agrees_and_what_does_not() -> None:
    patients = {"ircadb-01": "ircadb-01", "lits-028": "ircadb-01", "lits-029": "ircadb-02", "mine": "mine", "z": "z"}
    prints = {"ircadb-01": "aa", "lits-028": "bb", "lits-029": "cc", "mine": "aa", "z": "zz"}
    assert find_overlaps(patients, prints) == [
        Duplicate("ircadb-01", "lits-028", "voxels: HU histograms differ; catalogue: one patient, ircadb-01"),
        Duplicate("ircadb-01", "mine", "voxels: equal HU histograms (aa); catalogue: two patients, ircadb-01 and mine"),
    ]


def test_a_store_of_both_data_sets_holds_one_pair(small_store: Path) -> None:
    (pair,) = store_overlaps(open_store(small_store))
    assert (pair.a, pair.b) == ("ircadb-01", "lits-028")
    assert "equal HU histograms" in pair.evidence
    assert "one patient, ircadb-01" in pair.evidence


def test_all_twenty_pairs_are_found_from_the_voxels_of_both_forms(tmp_path: Path) -> None:
    """LiTS's arrays lie otherwise, and their headers are the identity; 27 and 48 are nobody's copies."""
    catalog = load_catalog()
    write_lits(tmp_path / "lits", [27, *range(28, 48), 48], seed=5, size=24, gz=False)
    own = load_catalog(tmp_path / "lits" / "catalog.yaml")
    prints = {
        case.case_id: fingerprint(read_case(case, own).volume.image.hu)
        for case in discover([tmp_path / "lits"], own).cases
    }
    for number in range(1, 21):
        prints[f"ircadb-{number:02d}"] = fingerprint(ircadb_phantom(number, seed=5, size=24, catalog=catalog).hu)
    strangers = {case: case for case in prints}
    found = find_overlaps(strangers, prints)
    assert [(pair.a, pair.b) for pair in found] == [(f"ircadb-{n:02d}", f"lits-{27 + n:03d}") for n in range(1, 21)]
    assert all("equal HU histograms" in pair.evidence for pair in found)
    known = find_overlaps({case: catalog.patient_of(case) for case in prints}, prints)
    assert [(pair.a, pair.b) for pair in known] == [(pair.a, pair.b) for pair in found]


@pytest.mark.parametrize("number", [1, 7])
def test_dicom_and_nifti_of_one_patient_have_one_fingerprint(phantom_ircadb: Path, tmp_path: Path, number: int) -> None:
    own = load_catalog(phantom_ircadb / "catalog.yaml")
    read = {case.number: case for case in discover([phantom_ircadb], own).cases}
    dicom = read_case(read[number], own).volume.image.hu
    for k, flips in enumerate(FLIPS):
        cut = np.clip(flipped(dicom, flips), -1000, 3071).astype(np.float32)
        (tmp_path / f"{k}.nii.gz").write_bytes(gzip.compress(nifti_bytes(cut, np.diag([1.0, -1.0, 1.0, 1.0]))))
    cases = discover([tmp_path], own, "any").cases
    assert {fingerprint(read_case(case, own).volume.image.hu) for case in cases} == {fingerprint(dicom)}
