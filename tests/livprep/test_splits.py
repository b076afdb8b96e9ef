"""Splits keep patients together and follow from the seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from livprep.catalog import load_catalog
from livprep.errors import UsageError
from livprep.splits import SIDES, Split, check_split, given_split, join_patients, make_folds, make_split

cohorts = st.dictionaries(
    st.integers(0, 200).map(lambda n: f"case-{n:03d}"), st.integers(0, 30).map(lambda n: f"patient-{n:02d}"), min_size=1
)
shares = st.floats(0, 0.99)
T = TypeVar("T")


def tried(make: Callable[[], T]) -> T | UsageError:
    """What `make` returns, or the error with which it refuses."""
    try:
        return make()
    except UsageError as error:
        return error


@given(cohorts, shares, shares, st.integers(0, 5))
def test_no_patient_lies_on_two_sides(patients: dict[str, str], val: float, test: float, seed: int) -> None:
    split = tried(lambda: make_split(patients, val_fraction=val, test=test, seed=seed))
    if isinstance(split, UsageError):
        assert split.code == "SPLIT_INVALID"
        assert "nothing is left for training" in split.message
        return
    assert sorted(split.case_ids) == sorted(patients)
    assert split.train
    sides = [{patients[case] for case in side} for side in (split.train, split.val, split.test)]
    assert sum(map(len, sides)) == len(set(patients.values()))
    assert set(split.reasons) == set(patients)
    for side in (split.train, split.val, split.test):
        assert list(side) == sorted(side)


@given(cohorts, st.integers(0, 5), st.randoms())
def test_a_seed_decides_whatever_the_order_of_the_cases(patients: dict[str, str], seed: int, random: object) -> None:
    items = list(patients.items())
    random.shuffle(items)
    assert make_split(patients, seed=seed) == make_split(dict(items), seed=seed)


def cohort(count: int) -> dict[str, str]:
    return {f"c{k:02d}": f"p{k:02d}" for k in range(count)}


def test_default_takes_a_fifth_for_validation() -> None:
    split = make_split(cohort(20))
    assert (split.name, split.seed, len(split.train), len(split.val), len(split.test)) == ("default", 0, 16, 4, 0)


def test_small_cohorts_still_validate_on_one_patient() -> None:
    assert len(make_split(cohort(2)).val) == 1
    assert len(make_split(cohort(3), val_fraction=0.01).val) == 1


def test_a_single_patient_is_not_divided() -> None:
    split = make_split({"ircadb-01": "ircadb-01", "lits-028": "ircadb-01"})
    assert (split.train, split.val, split.test) == (("ircadb-01", "lits-028"), (), ())


def test_no_validation_when_none_is_asked_for() -> None:
    assert make_split(cohort(10), val_fraction=0).val == ()


def test_seeds_differ() -> None:
    assert len({make_split(cohort(20), seed=seed).val for seed in range(5)}) > 1


def test_named_test_cases_take_their_patients_other_cases_along() -> None:
    patients = cohort(5) | {"ircadb-01": "ircadb-01", "lits-028": "ircadb-01"}
    split = make_split(patients, test=["lits-028"])
    assert split.test == ("ircadb-01", "lits-028")
    assert split.reasons["ircadb-01"].startswith("patient ircadb-01 ")


def test_share_for_test_is_taken_of_all_patients() -> None:
    split = make_split(cohort(10), test=0.3, val_fraction=0.5)
    assert (len(split.test), len(split.val), len(split.train)) == (3, 4, 3)


@pytest.mark.parametrize(
    ("patients", "options", "message"),
    [
        ({}, {}, "found no cases"),
        ({"a": "p"}, {"test": ["b"]}, r"test cases \['b'\]: not in the store"),
        ({"a": "p"}, {"test": ["a"]}, "nothing is left for training"),
        ({"a": "p"}, {"val_fraction": 1.0}, "val share 1.0: expected 0 up to below 1"),
        ({"a": "p"}, {"test": -0.1}, "test share -0.1: expected 0 up to below 1"),
    ],
)
def test_impossible_splits_are_refused(patients: dict, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make_split(patients, **options)
    assert caught.value.code == "SPLIT_INVALID"


def test_json_form_comes_back_and_refuses_unknown_keys() -> None:
    split = make_split(cohort(4))
    assert Split.model_validate_json(split.model_dump_json()) == split
    with pytest.raises(ValidationError):
        Split.model_validate({**split.model_dump(), "fold": 1})


# --- the same scan under two names, tumor burden, folds, splits by hand

prints = st.dictionaries(st.integers(0, 200).map(lambda n: f"case-{n:03d}"), st.integers(0, 12).map(lambda n: f"f{n}"))


def connected(patients: dict[str, str], fingerprints: dict[str, str]) -> list[set[str]]:
    """Cases that are joined by patients and fingerprints, found by growing sets until nothing changes."""
    groups: list[set[str]] = []
    for case in patients:
        linked = [
            group
            for group in groups
            if any(
                patients[a] == patients[case] or (a in fingerprints and fingerprints[a] == fingerprints.get(case))
                for a in group
            )
        ]
        groups = [group for group in groups if group not in linked] + [{case}.union(*linked)]
    return groups


@given(cohorts, prints, shares, shares, st.integers(0, 5))
def test_no_scan_lies_on_two_sides(patients: dict, fingerprints: dict, val: float, test: float, seed: int) -> None:
    facts = {"fingerprints": fingerprints, "burden": {case: len(case) % 7 / 7 for case in patients}}
    split = tried(lambda: make_split(patients, val_fraction=val, test=test, seed=seed, **facts))
    if isinstance(split, UsageError):
        assert "nothing is left for training" in split.message
        return
    assert make_split(patients, val_fraction=val, test=test, seed=seed, **facts) == split
    assert sorted(split.case_ids) == sorted(patients) == list(split.reasons)
    groups = connected(patients, fingerprints)
    for group in groups:
        assert sum(bool(group & set(split.side(side))) for side in SIDES) == 1
    check_split(split, patients, {case: f for case, f in fingerprints.items() if case in patients})
    rest = len(groups) - sum(bool(group & set(split.test)) for group in groups)
    if val > 0 and rest > 1:
        assert sum(bool(group & set(split.val)) for group in groups) == max(1, round(val * rest))


@given(cohorts, prints, st.integers(2, 6), st.integers(0, 5), st.sampled_from([0.0, 0.2]))
def test_each_patient_validates_in_exactly_one_fold(
    patients: dict, fingerprints: dict, count: int, seed: int, test: float
) -> None:
    folds = tried(lambda: make_folds(patients, count, test=test, seed=seed, fingerprints=fingerprints))
    if isinstance(folds, UsageError):
        assert f"{count} folds of" in folds.message
        return
    assert [fold.name for fold in folds] == [f"default-fold{k}" for k in range(count)]
    assert len({fold.test for fold in folds}) == 1
    validated = [case for fold in folds for case in fold.val]
    assert sorted([*validated, *folds[0].test]) == sorted(patients)
    sizes = []
    for fold in folds:
        check_split(fold, patients, {case: f for case, f in fingerprints.items() if case in patients})
        assert sorted(fold.case_ids) == sorted(patients)
        sizes.append(sum(bool(group & set(fold.val)) for group in connected(patients, fingerprints)))
    assert max(sizes) - min(sizes) <= 1
    assert make_folds(patients, count, test=test, seed=seed, fingerprints=fingerprints) == folds


def test_a_copy_follows_its_patient_and_counts_once() -> None:
    patients = cohort(9) | {"copy": "other"}
    fingerprints = {"c00": "same", "copy": "same"}
    for seed in range(20):
        split = make_split(patients, seed=seed, test=0.2, val_fraction=0.25, fingerprints=fingerprints)
        side = next(side for side in SIDES if "c00" in split.side(side))
        assert "copy" in split.side(side)
        assert len(set(split.test) - {"copy"}) == 2
        assert len(set(split.val) - {"copy"}) == 2
        assert split.reasons["c00"].startswith("patient p00 (the same voxels as other) ")


def test_three_patients_can_be_joined_by_two_copies() -> None:
    patients = {"a": "p3", "b": "p1", "c": "p1", "d": "p2", "e": "p4"}
    fingerprints = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "z"}
    assert join_patients(patients, fingerprints) == {"a": "p1", "b": "p1", "c": "p1", "d": "p1", "e": "p4"}


def test_sides_see_the_whole_range_of_tumor_burden() -> None:
    """20 patients of burden 0...19: one in every stretch of five goes to validation."""
    burden = {f"c{k:02d}": k / 100 for k in range(20)}
    for seed in range(10):
        split = make_split(cohort(20), seed=seed, burden=burden)
        assert [int(case[1:]) // 5 for case in split.val] == [0, 1, 2, 3]
        folds = make_folds(cohort(20), 5, seed=seed, burden=burden)
        assert all([int(case[1:]) // 5 for case in fold.val] == [0, 1, 2, 3] for fold in folds)
    assert len({make_split(cohort(20), seed=seed, burden=burden).val for seed in range(10)}) > 5


def test_unused_cases_are_listed_with_their_reason() -> None:
    split = make_split(cohort(4), unused={"litstest-000": "not used: no labels"})
    assert "litstest-000" not in split.case_ids
    assert split.reasons["litstest-000"] == "not used: no labels"
    assert len(split.reasons) == 5


@pytest.mark.parametrize("count", [0, 1, 5])
def test_impossible_folds_are_refused(count: int) -> None:
    with pytest.raises(UsageError, match=f"{count} folds of 4 patients: expected 2 up to that many"):
        make_folds(cohort(4), count)


CATALOG = load_catalog()
PATIENTS = {"ircadb-01": "ircadb-01", "lits-027": "lits-027", "lits-028": "ircadb-01", "lits-048": "lits-048"}


def test_lits_27_and_48_are_no_copies_of_3dircadb() -> None:
    """The claim "LiTS 27-48 are 3DIRCADb" is in circulation; it is 28-47."""
    sides = {"train": ["lits-027"], "val": ["lits-048"], "test": ["ircadb-01", "lits-028"]}
    split = given_split(sides, PATIENTS, name="mine", fingerprints={"lits-027": "a", "lits-048": "b"})
    assert (split.train, split.val, split.test) == (("lits-027",), ("lits-048",), ("ircadb-01", "lits-028"))
    assert split.reasons["lits-048"] == "val as given"


EVERY = {case: CATALOG.patient_of(case) for case in (
    *(f"ircadb-{n:02d}" for n in range(1, 21)), *(f"lits-{n:03d}" for n in range(131))
)}  # fmt: skip
"""Both data sets whole, with the catalogue's patients."""


@pytest.mark.parametrize("number", range(1, 21))
@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(["train", "val", "test"], 2)))
def test_each_of_the_twenty_pairs_is_refused_on_two_sides_by_catalogue_and_by_fingerprint(
    number: int, one: str, other: str
) -> None:
    a, b = f"ircadb-{number:02d}", f"lits-{27 + number:03d}"
    sides = {side: [f"lits-{k:03d}"] for k, side in enumerate(("train", "val", "test"))}
    sides[one], sides[other] = [*sides[one], a], [*sides[other], b]
    with pytest.raises(UsageError, match=rf"({a}|{b}) .* and ({a}|{b}) .* are one patient") as caught:
        given_split(sides, EVERY, name="mine")
    assert caught.value.code == "SPLIT_INVALID"
    strangers = {case: case for case in EVERY}  # a catalogue that knows nothing of the overlap
    prints = {case: EVERY[case] for case in EVERY}  # the voxels do
    with pytest.raises(UsageError, match=rf"({a}|{b}) .* and ({a}|{b}) .* have the same voxels"):
        given_split(sides, strangers, name="mine", fingerprints=prints)
    sides[other].remove(b)
    sides[one].append(b)
    assert given_split(sides, EVERY, name="mine", fingerprints=prints)


@pytest.mark.parametrize("number", [27, 48])
@pytest.mark.parametrize("patient", range(1, 21))
def test_27_and_48_may_lie_on_another_side_than_any_patient_of_3dircadb(number: int, patient: int) -> None:
    sides = {"train": [f"lits-{number:03d}"], "test": [f"ircadb-{patient:02d}"]}
    assert given_split(sides, EVERY, name="mine").test == (f"ircadb-{patient:02d}",)


@pytest.mark.parametrize("seed", range(5))
def test_holding_out_3dircadb_takes_28_to_47_out_of_training_and_nothing_else(seed: int) -> None:
    held = [case for case, patient in EVERY.items() if patient.startswith("ircadb-")]
    split = make_split(EVERY, test=held, seed=seed)
    assert set(split.test) == {f"ircadb-{n:02d}" for n in range(1, 21)} | {f"lits-{n:03d}" for n in range(28, 48)}
    assert len(split.val) == round(0.2 * 111)
    assert len(split.train) + len(split.val) == 111
    alone = make_split(EVERY, test=["ircadb-03"], seed=seed)
    assert alone.test == ("ircadb-03", "lits-030")


def test_duplicates_count_once_in_shares_and_folds() -> None:
    """151 cases are 131 patients."""
    assert len({EVERY[case] for case in make_split(EVERY, val_fraction=0.2).val}) == round(0.2 * 131)
    folds = make_folds(EVERY, 131)
    assert sorted(len(fold.val) for fold in folds) == [1] * 111 + [2] * 20
    assert sorted(case for fold in folds for case in fold.val) == sorted(EVERY)


def test_a_copy_that_is_not_used_still_joins_two_patients() -> None:
    patients = PATIENTS | {"mine": "mine"}
    with pytest.raises(UsageError, match=r"mine \(train\) and lits-028 \(test\) are one patient by a copy"):
        given_split(
            {"train": ["mine"], "test": ["lits-028"]},
            patients,
            name="s",
            fingerprints={"mine": "a", "ircadb-01": "a", "lits-028": "b"},
        )


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ({"train": ["ircadb-01"], "test": ["lits-028"]}, r"ircadb-01 \(train\) and lits-028 \(test\) are one patient"),
        ({"train": ["lits-027"], "val": ["lits-048"]}, r"lits-027 \(train\) and lits-048 \(val\) have the same voxels"),
        ({"train": ["lits-027", "lits-027"]}, r"lits-027 is named twice \(train, train\)"),
        ({"train": ["lits-027"], "val": ["lits-027"]}, r"lits-027 is named twice \(train, val\)"),
        ({"train": ["lits-099"]}, r"lits-099 \(train\) is not in the store"),
        ({"train": ["litstest-000"]}, "litstest-000 cannot be used: no labels"),
        ({"val": ["lits-027"]}, "names no case for training"),
    ],
)
def test_a_hand_made_split_that_leaks_is_refused(sides: dict, message: str) -> None:
    facts = {"fingerprints": {"lits-027": "same", "lits-048": "same"}, "unused": {"litstest-000": "no labels"}}
    with pytest.raises(UsageError, match=message) as caught:
        given_split(sides, PATIENTS, name="mine", **facts)
    assert caught.value.code == "SPLIT_INVALID"


@given(cohorts, prints, st.data())
def test_a_hand_made_split_is_accepted_exactly_if_no_group_is_divided(
    patients: dict, fingerprints: dict, data: st.DataObject
) -> None:
    side_of = {case: data.draw(st.sampled_from(["train", "val", "test", ""])) for case in patients}
    sides = {side: [case for case in side_of if side_of[case] == side] for side in SIDES}
    groups = connected(patients, fingerprints)  # a case on no side may still show that two patients are one
    leaks = any(len({side_of[case] for case in group} - {""}) > 1 for group in groups)
    split = tried(lambda: given_split(sides, patients, name="s", fingerprints=fingerprints))
    if isinstance(split, UsageError):
        assert leaks or not sides["train"], split.message
    else:
        assert not leaks
        assert set(split.reasons) == set(patients)
