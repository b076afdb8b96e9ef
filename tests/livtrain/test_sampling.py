from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from fake_store import FakeCase, abdomen, fake_store
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from livprep.errors import UsageError
from livprep.labels import Label
from livtrain.loader import Shares
from livtrain.sampling import KINDS, STAGE_ODDS, CaseIndex, PatchSampler

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


ALL_KINDS = {"tumor": 1, "liver": 1, "near": 1, "anywhere": 1}


def _sampler(seed: int = 3, patches_per_read: int = 1, patch: tuple[int, int, int] = (8, 12, 10)) -> PatchSampler:
    cases = [CaseIndex.of(case) for case in fake_store(3).values()]
    return PatchSampler(cases, patch, ALL_KINDS, seed, patches_per_read)


@given(
    first=st.integers(0, 2**50),
    count=st.integers(1, 70),
    group=st.integers(1, 5),
    attempt=st.integers(0, 2),
    seed=st.integers(0, 2**40),
)
def test_a_block_is_its_patches_one_by_one(first: int, count: int, group: int, attempt: int, seed: int) -> None:
    sampler = _sampler(seed, group)
    block = sampler.block(first, count, attempt)
    for k in range(0, count, 7):
        one = sampler.block(first + k, 1, attempt)
        assert (block.kinds[k], block.cases[k]) == (one.kinds[0], one.cases[0])
        assert (block.origins_zyx[k] == one.origins_zyx[0]).all()
    if attempt == 0:
        refs = sampler.refs(range(first, first + count))
        assert refs == [sampler[first + k] for k in range(count)]
        assert [ref.origin_zyx for ref in refs] == [tuple(row) for row in block.origins_zyx.tolist()]


def test_near_patches_hold_a_voxel_beside_the_liver() -> None:
    store = fake_store(2)
    sampler = PatchSampler([CaseIndex.of(case) for case in store.values()], (3, 4, 5), {"near": 1}, 0)
    for ref in (sampler[k] for k in range(50)):
        near = np.zeros(store[ref.case_id].shape_zyx, bool)
        near[tuple(store[ref.case_id].near_points().T)] = True
        z, y, x = (slice(o, o + p) for o, p in zip(ref.origin_zyx, (3, 4, 5), strict=True))
        assert near[z, y, x].any()


def test_stores_without_the_index_of_the_surroundings_leave_that_kind_out() -> None:
    class Older(FakeCase):
        near_count = 0  # type: ignore[assignment]

    sampler = PatchSampler([CaseIndex.of(Older("a", *abdomen(0)))], (8, 8, 8), STAGE_ODDS["liver"], 0)
    assert sampler.kinds == ("liver", "anywhere")
    shares = Counter(sampler[k].kind for k in range(2000))
    assert shares["liver"] / 2000 == pytest.approx(0.5 / 0.8, abs=0.04)


def test_points_are_read_once_and_only_when_a_patch_asks() -> None:
    asked: list[tuple[str, str]] = []

    def index(name: str) -> CaseIndex:
        def read(kind: str) -> np.ndarray:
            asked.append((name, kind))
            return np.array([[5, 5, 5]], np.int32)

        return CaseIndex(name, (20, 20, 20), {"liver": 1}, read)

    sampler = PatchSampler([index(f"c{k}") for k in range(4)], (8, 8, 8), {"liver": 1, "anywhere": 1}, 0)
    assert asked == []
    for k in range(500):
        _ = sampler[k]
    assert sorted(asked) == [(f"c{k}", "liver") for k in range(4)]


def test_replacements_are_a_stream_of_their_own() -> None:
    sampler = _sampler()
    for k in (0, 7, 1000):
        first, second = sampler.replacement(k, 1), sampler.replacement(k, 2)
        assert first == _sampler().replacement(k, 1)
        assert first.counter == second.counter == k
        assert len({sampler[k], first, second}) == 3


@given(
    batch=st.integers(1, 4),
    world=st.integers(1, 4),
    start=st.integers(0, 9),
    length=st.integers(0, 40),
)
def test_ranks_are_disjoint_and_together_the_stream_of_one(batch: int, world: int, start: int, length: int) -> None:
    stop = start + length
    ranks = [Shares(batch, start, stop, rank, world) for rank in range(world)]
    whole = Shares(batch * world, start, stop)
    number, seen = 0, []
    while (step := whole.step(number)) is not None:
        parts = [rank.step(number) for rank in ranks]
        assert [k for part in parts for k in (part or ())] == list(step)
        seen += list(step)
        number += 1
    assert seen == list(range(start, stop))
    assert all(rank.step(number) is None for rank in ranks)


@pytest.mark.parametrize("patch", [(8, 12, 10), (20, 40, 30)])
def test_neighbors_are_distributed_as_single_patches(patch: tuple[int, int, int]) -> None:
    """Chi-square of kind, case and origin: patches at each place of a group of 4 against patches drawn singly."""
    draws, group = 4096, 4

    def cells(origins: np.ndarray, kinds: np.ndarray, cases: np.ndarray) -> np.ndarray:
        thirds = np.minimum(3 * np.maximum(origins, 0) // np.maximum(np.array([24, 32, 32]) - patch + 1, 1), 2)
        return np.ravel_multi_index((kinds, cases, *thirds.T), (len(KINDS), 3, 3, 3, 3))

    single = _sampler(patch=patch).block(0, draws)
    reference = cells(single.origins_zyx, single.kinds, single.cases)
    grouped = _sampler(seed=11, patches_per_read=group, patch=patch).block(0, draws * group)
    for place in range(group):
        found = cells(grouped.origins_zyx[place::group], grouped.kinds[place::group], grouped.cases[place::group])
        table = np.stack([np.bincount(each, minlength=len(KINDS) * 81) for each in (reference, found)])
        common = table.sum(axis=0) >= 10
        table = np.concatenate([table[:, common], table[:, ~common].sum(axis=1, keepdims=True)], axis=1)
        assert stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue > 0.001
    # ... and they are neighbors: the group's patches overlap
    spread = np.ptp(grouped.origins_zyx.reshape(draws, group, 3), axis=1)
    assert (spread <= np.array(patch) // 2 + 1).mean() > 0.97
    assert (grouped.cases.reshape(draws, group) == grouped.cases[::group, None]).all()


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(UsageError, match=r"kinds \['kidney'\] are unknown, expected some of \('tumor'"):
        PatchSampler([CaseIndex("a", (9, 9, 9))], (4, 4, 4), {"kidney": 1}, 0)
