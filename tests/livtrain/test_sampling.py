from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from fake_store import FakeCase, abdomen
from hypothesis import given
from hypothesis import strategies as st

from livprep.errors import UsageError
from livprep.labels import Label
from livtrain.sampling import STAGE_ODDS, CaseIndex, PatchSampler

LABELS = {"tumor": Label.TUMOR, "liver": Label.LIVER}
sizes = st.tuples(*[st.integers(1, 40)] * 3)


def _index(case_id: str, shape: tuple[int, int, int], seed: int) -> tuple[CaseIndex, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, size=shape, p=[0.9, 0.07, 0.03]).astype(np.uint8)
    return CaseIndex.of(FakeCase(case_id, np.zeros(shape, np.int16), labels)), labels


@given(shape=sizes, patch=sizes, seed=st.integers(0, 2**32), counter=st.integers(0, 2**40))
def test_patches_hold_their_voxel_and_stay_inside(
    shape: tuple[int, int, int], patch: tuple[int, int, int], seed: int, counter: int
) -> None:
    case, labels = _index("a", shape, seed)
    ref = PatchSampler([case], patch, {"tumor": 1, "liver": 1, "anywhere": 1}, seed)[counter]
    for start, size, length in zip(ref.origin_zyx, patch, shape, strict=True):
        if length >= size:
            assert 0 <= start <= length - size
        else:  # a smaller volume lies in the middle of the patch
            before, after = -start, start + size - length
            assert before - after in (0, 1)
    if ref.kind != "anywhere":
        box = tuple(slice(max(o, 0), max(o, 0) + p) for o, p in zip(ref.origin_zyx, patch, strict=True))
        assert (labels[box] == LABELS[ref.kind]).any()


def test_a_patch_is_a_function_of_seed_and_counter() -> None:
    cases = [_index(name, (20, 30, 30), k)[0] for k, name in enumerate("abc")]
    first = PatchSampler(cases, (8, 16, 16), STAGE_ODDS["tumor"], 7)
    again = PatchSampler(cases, (8, 16, 16), STAGE_ODDS["tumor"], 7)
    forward = [first[k] for k in range(50)]
    assert forward == [again[k] for k in reversed(range(50))][::-1]
    assert forward != [PatchSampler(cases, (8, 16, 16), STAGE_ODDS["tumor"], 8)[k] for k in range(50)]
    assert len({ref.origin_zyx for ref in forward}) > 40


def test_shares_of_kinds_do_not_depend_on_how_many_cases_hold_tumors() -> None:
    hu, labels = abdomen(0)
    free = np.minimum(labels, 1)
    cases = [CaseIndex.of(FakeCase(f"c{k}", hu, labels if k == 0 else free)) for k in range(5)]
    sampler = PatchSampler(cases, (8, 8, 8), {"tumor": 0.5, "liver": 0.25, "anywhere": 0.25}, 0)
    refs = [sampler[k] for k in range(4000)]
    kinds = Counter(ref.kind for ref in refs)
    assert kinds["tumor"] / 4000 == pytest.approx(0.5, abs=0.03)
    assert kinds["liver"] / 4000 == pytest.approx(0.25, abs=0.03)
    assert {ref.case_id for ref in refs if ref.kind == "tumor"} == {"c0"}
    shares = Counter(ref.case_id for ref in refs if ref.kind == "anywhere")
    assert min(shares.values()) / sum(shares.values()) > 0.14


def test_anywhere_covers_the_volume_evenly() -> None:
    sampler = PatchSampler([CaseIndex("a", (10, 9, 8))], (4, 4, 8), {"anywhere": 1}, 0)
    starts = np.array([sampler[k].origin_zyx for k in range(3000)])
    for axis, room in enumerate((6, 5, 0)):
        counts = np.bincount(starts[:, axis], minlength=room + 1)
        assert len(counts) == room + 1
        assert counts.min() > 0.7 * 3000 / (room + 1)


def test_a_kind_that_nobody_offers_is_left_out() -> None:
    case = CaseIndex.of_points("a", (10, 10, 10), {"liver": np.array([[5, 5, 5]], np.int32)})
    assert {PatchSampler([case], (4, 4, 4), STAGE_ODDS["tumor"], 0)[k].kind for k in range(20)} == {"liver"}
    with pytest.raises(UsageError, match="none of 1 cases offers a patch of \\['tumor'\\]"):
        PatchSampler([case], (4, 4, 4), {"tumor": 1, "anywhere": 0}, 0)
