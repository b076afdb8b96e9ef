"""Splits keep patients together and follow from the seed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from livprep.errors import UsageError
from livprep.splits import Split, make_split
from pydantic import ValidationError

cohorts = st.dictionaries(
    st.integers(0, 200).map(lambda n: f"case-{n:03d}"), st.integers(0, 30).map(lambda n: f"patient-{n:02d}"), min_size=1
)
shares = st.floats(0, 0.99)


@given(cohorts, shares, shares, st.integers(0, 5))
def test_no_patient_lies_on_two_sides(patients: dict[str, str], val: float, test: float, seed: int) -> None:
    try:
        split = make_split(patients, val_fraction=val, test=test, seed=seed)
    except UsageError as error:
        assert error.code == "SPLIT_INVALID"
        assert "nothing is left for training" in error.message
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
