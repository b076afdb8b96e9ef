"""The catalogue: its facts, its typed access, and every guard of its loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from livprep.catalog import SIZE_LIMIT_BYTES, Catalog, LitsFile, MaskRole, dump_catalog, load_catalog
from livprep.errors import CatalogError
from livprep.geometry import canonical_axes

CATALOG = load_catalog()
ROLES = CATALOG.ircadb.masks


def test_totals_agree_with_what_is_published() -> None:
    cases = CATALOG.ircadb.cases
    assert [case.number for case in cases] == list(range(1, 21))
    assert sum(case.slices for case in cases) == 2823
    assert sum(not case.tumor_free for case in cases) == 15
    assert len(CATALOG.lits.tumor_free) == 131 - 118
    assert sum(name.startswith("livertumor") for case in cases for name in case.masks) == 7 + 3 + 2 + 12
    assert [case.number for case in cases if not case.masks_complete] == [20]


def test_patient_one_is_as_measured() -> None:
    case = CATALOG.ircadb.case(1)
    assert case is not None
    assert (case.case_id, case.slices, case.spacing_mm) == ("ircadb-01", 129, (1.6, 0.57, 0.57))
    assert (case.liver_voxels, case.tumor_voxels) == (2865131, 214268)
    assert case.tumor_masks(ROLES) == tuple(f"livertumor0{k}" for k in range(1, 8))


@pytest.mark.parametrize("case", CATALOG.ircadb.cases, ids=lambda case: case.case_id)
def test_tumor_masks_are_the_hepatic_ones(case: Any) -> None:
    expected = tuple(name for name in case.masks if name.startswith("livertumor"))
    assert case.tumor_masks(ROLES) == expected
    assert case.tumor_free == (not expected)
    assert case.liver_hu.low < case.liver_hu.mode < case.liver_hu.high


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("liver", MaskRole.LIVER),
        ("livertumor07", MaskRole.TUMOR),
        ("livertumors", MaskRole.TUMOR),
        ("livertumor08", MaskRole.UNLISTED),
        ("tumor", MaskRole.DISPUTED),
        ("liverkyste", MaskRole.DISPUTED),
        ("leftsurretumor", MaskRole.DISPUTED),
        ("metastasectomie", MaskRole.DISPUTED),
        ("stones", MaskRole.OTHER),
        ("rightsurrenalGland", MaskRole.OTHER),
        ("portalvein1", MaskRole.OTHER),
        ("Hyperplasie", MaskRole.UNLISTED),
    ],
)
def test_masks_are_classified_by_exact_name_without_regard_to_case(name: str, role: MaskRole) -> None:
    assert {CATALOG.ircadb.classify(form) for form in (name, name.upper(), name.lower())} == {role}


def test_a_disputed_mask_counts_once_the_catalogue_says_so() -> None:
    data = CATALOG.as_dict()
    data["ircadb"]["masks"]["disputed_as_tumor"] = ["tumor"]
    chosen = Catalog.model_validate(data)
    case = chosen.ircadb.case(7)
    assert case is not None
    assert case.tumor_masks(chosen.ircadb.masks) == ("tumor",)
    assert case.expected_tumor_voxels(chosen.ircadb.masks) is None
    assert case.expected_tumor_voxels(ROLES) == 0
    assert chosen.ircadb.classify("liverkyst") is MaskRole.DISPUTED


def test_layout_reads_the_names_on_disks() -> None:
    layout = CATALOG.ircadb.layout
    assert [layout.case_number(n) for n in ("3Dircadb1.7", "3dircadb1.20", "3Dircadb2.1", "3Dircadb1.")] == [
        7,
        20,
        None,
        None,
    ]
    assert [layout.slice_number(n) for n in ("image_0", "image_12.dcm", ".DS_Store")] == [0, 12, None]
    parse = CATALOG.lits.layout.parse
    assert parse("volume-28.nii.gz") == LitsFile("volume", 28)
    assert parse("Segmentation-28.nii") == LitsFile("label", 28)
    assert parse("test-volume-59.nii") == LitsFile("test_volume", 59)
    assert parse("test-segmentation-3.nii") == LitsFile("test_label", 3)
    assert (parse("volume-28.nrrd"), parse("volume-.nii"), parse("my-volume-1.nii")) == (None, None, None)


def test_overlaps_name_one_patient() -> None:
    assert [CATALOG.patient_of(f"lits-{27 + n:03d}") for n in (1, 20)] == ["ircadb-01", "ircadb-20"]
    for case_id in ("ircadb-01", "lits-027", "lits-048", "litstest-028", "my-scan"):
        assert CATALOG.patient_of(case_id) == case_id


@pytest.mark.parametrize("repair", CATALOG.lits.repairs, ids=lambda repair: str(repair.number))
def test_a_repaired_grid_turns_into_its_3dircadb_patients(repair: Any) -> None:
    case = CATALOG.ircadb.case(repair.number - 27)
    assert case is not None
    geometry = repair.geometry((case.slices, 512, 512))
    assert geometry.orientation == repair.orientation == "LAS"
    axes, turned = canonical_axes(geometry)
    assert axes.flipped_zyx == (False, True, False)
    assert (turned.orientation, turned.spacing_mm) == ("LPS", case.spacing_mm)
    np.testing.assert_allclose(turned.origin_mm, 0, atol=1e-9)


def test_lits_numbers() -> None:
    lits = CATALOG.lits
    assert lits.repair(27) is None
    assert lits.repair(48) is None
    assert (lits.is_train(130), lits.is_train(131), lits.is_test(69), lits.is_test(70)) == (True, False, True, False)
    headers = [lits.header_of(n) for n in (0, 28, 53, 68, 130)]
    assert [h and (h.header, h.truth) for h in headers] == [
        ("LAS", "LAS"),
        ("RAS", "LAS"),
        ("LPS", "LPS"),
        ("RAS", "RAS"),
        None,
    ]


def test_windows() -> None:
    presets = CATALOG.windows.presets
    assert (presets["wide"].low_hu, presets["wide"].high_hu) == (-200, 200)
    assert (presets["liver-narrow"].low_hu, presets["liver-narrow"].high_hu) == (-45, 105)
    for name in ("lits-160-240", "lits-100-400", "lits-75-175", "lits-200-250"):
        low, high = (float(part) for part in name.split("-")[1:])
        assert (presets[name].low_hu, presets[name].high_hu) == (-low, high)
    bank = CATALOG.windows.default_bank()
    assert [window.name for window in bank] == ["abdomen", "liver", "lesion"]


def test_the_wide_default_keeps_the_extreme_livers() -> None:
    wide = next(iter(CATALOG.windows.default_bank()))
    ranges = [case.liver_hu for case in CATALOG.ircadb.cases if case.liver_hu]
    # Patient 8's 99.5 percentile (260 HU) is the only one beyond, by 10 HU.
    assert all(wide.low_hu <= hu.low and hu.high <= wide.high_hu + 10 for hu in ranges)


def test_dump_reads_back_to_the_same_digest(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text("# comments and order do not enter the digest\n" + dump_catalog(CATALOG), encoding="utf-8")
    again = load_catalog(path)
    assert again == CATALOG
    assert again.digest == CATALOG.digest
    data = CATALOG.as_dict()
    data["windows"]["presets"]["liver"]["wl"] = 41
    assert Catalog.model_validate(data).digest != CATALOG.digest


def _load(tmp_path: Path, text: str) -> Catalog:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load_catalog(path)


def _refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(CatalogError) as caught:
        _load(tmp_path, text)
    assert caught.value.code == "CATALOG_INVALID"
    assert "\n" not in caught.value.message
    assert "mine.yaml" in caught.value.message
    return caught.value.message


Edit = Callable[[dict[str, Any]], None]


def _set(*path: Any) -> Edit:
    *parents, key, value = path

    def edit(data: dict[str, Any]) -> None:
        for parent in parents:
            data = data[parent]
        data[key] = value

    return edit


def _all(*edits: Edit) -> Edit:
    def edit(data: dict[str, Any]) -> None:
        for one in edits:
            one(data)

    return edit


CONTRADICTIONS: dict[str, tuple[Edit, str]] = {
    "unknown key": (_set("ircadb", "colour", "red"), "ircadb.colour: Extra inputs are not permitted"),
    "schema": (_set("schema", 2), "schema: Input should be 1"),
    "not finite": (_set("windows", "presets", "liver", "wl", float("nan")), "finite"),
    "spacing of a repair": (
        _set("lits", "repairs", 0, "spacing_mm", [1.6, 0.6, 0.6]),
        "LiTS 28: spacing or slices differ",
    ),
    "slices of a patient": (_set("ircadb", "cases", 0, "slices", 130), "LiTS 28: spacing or slices differ"),
    "orientation of a repair": (_set("lits", "repairs", 0, "orientation", "LPS"), "repair LPS, header table LAS"),
    "orientation names an axis twice": (_set("lits", "repairs", 0, "orientation", "LRS"), "names an axis twice"),
    "overlap shifted": (_set("overlaps", "pairs", 0, "lits", 29), "overlaps and the `lits` numbers"),
    "lits number": (
        _all(_set("overlaps", "pairs", 0, "lits", 48), _set("ircadb", "cases", 0, "lits", 48)),
        "expected LiTS 27 + N",
    ),
    "repair missing": (lambda d: d["lits"]["repairs"].pop(), "overlaps and LiTS repairs"),
    "evidence not described": (_set("overlaps", "pairs", 0, "evidence", ["hearsay"]), "evidence ['hearsay']"),
    "tumor-free of LiTS": (_set("lits", "tumor_free", [87]), "do not coincide"),
    "tumor_free against masks": (_set("ircadb", "cases", 0, "tumor_free", True), "the masks say otherwise"),
    "tumor_free against voxels": (_set("ircadb", "cases", 0, "tumor_voxels", 0), "at 0 tumor voxels"),
    "mask in no role": (_set("ircadb", "cases", 0, "masks", ["liver", "livertumor99"]), "in no role or named twice"),
    "no liver": (_set("ircadb", "cases", 0, "masks", ["livertumor"]), "exactly one liver mask"),
    "liver slices": (_set("ircadb", "cases", 0, "liver_slices", [5, 129]), "outside 0...128"),
    "negative spacing": (_set("ircadb", "cases", 0, "spacing_mm", [1.6, -1, 1]), "expected positive"),
    "two numbers": (_set("ircadb", "cases", 1, "number", 1), "two cases have one number"),
    "role twice": (_set("ircadb", "masks", "other", ["Liver"]), "stand in two places"),
    "decision": (_set("ircadb", "masks", "disputed_as_tumor", ["skin"]), "`disputed` does not list"),
    "tumor-free outside": (_set("lits", "tumor_free", [131]), "outside the data set"),
    "test outside": (_set("lits", "test_axes_swapped", [70]), "outside the data set"),
    "headers overlap": (_set("lits", "headers", 0, "last", 30), "overlap or are out of order"),
    "repairs twice": (_set("lits", "repairs", 1, "number", 28), "two repairs have one number"),
    "window width": (_set("windows", "presets", "liver", "ww", 0), "expected finite values and a positive width"),
    "bank": (_set("windows", "default_bank", ["cat"]), "no presets"),
    "bank empty": (_set("windows", "default_bank", []), "at least 1 item"),
}


@pytest.mark.parametrize(("edit", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_contradiction_is_refused_with_its_reason(tmp_path: Path, edit: Edit, message: str) -> None:
    data = CATALOG.as_dict()
    edit(data)
    assert message in _refused(tmp_path, yaml.safe_dump(data))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema: 1\nlits: {}\nschema: 1\n", "line 3: key 'schema' is given twice"),
        ("a: {b: 1, c: {d: 1, d: 2}}", "line 1: key 'd' is given twice"),
        ("a: &x [1]\nb: *x\n", "aliases are not allowed"),
        ("a: [1", "not readable as YAML"),
        ("!!python/object/apply:os.system ['true']", "not readable as YAML"),
        ("- 1", "valid dictionary"),
        ("", "valid dictionary"),
        ("[" * 5000, "catalogue mine.yaml"),
    ],
)
def test_what_is_no_catalogue_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in _refused(tmp_path, text)


def test_many_faults_are_counted(tmp_path: Path) -> None:
    assert "(and " in _refused(tmp_path, "{a: 1, b: 2, c: 3, d: 4}")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="not readable"):
        load_catalog(tmp_path / "absent.yaml")
    with pytest.raises(CatalogError, match="not readable"):
        load_catalog(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(CatalogError, match="not readable"):
        load_catalog(path)
    path.write_text("#" * (SIZE_LIMIT_BYTES + 1))
    with pytest.raises(CatalogError, match="larger than"):
        load_catalog(path)


@given(st.text(max_size=60))
def test_no_text_ends_in_another_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("catalog") / "mine.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(CatalogError):
        load_catalog(path)


def test_facts_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        CATALOG.lits.title = "other"
