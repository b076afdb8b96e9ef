"""A scan is recognised under flips, transpositions and clipping, and told from others."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from livprep.fingerprint import HIGH_HU, LOW_HU, fingerprint

volumes = hnp.arrays(np.int16, st.tuples(*[st.integers(1, 5)] * 3), elements=st.integers(-3000, 3071))


@given(volumes, st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_turning_and_clipping_keep_the_fingerprint(hu: np.ndarray, order: list[int], flips: tuple) -> None:
    turned = hu.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    assert fingerprint(turned) == fingerprint(hu)
    assert fingerprint(np.clip(hu, -1024, 1023)) == fingerprint(hu)


@given(volumes, st.data())
def test_one_other_voxel_is_another_scan(hu: np.ndarray, data: st.DataObject) -> None:
    hu = np.clip(hu, LOW_HU, HIGH_HU)
    other = hu.copy()
    index = tuple(data.draw(st.integers(0, n - 1)) for n in hu.shape)
    other[index] += 1 if other[index] < HIGH_HU else -1
    assert fingerprint(other) != fingerprint(hu)
