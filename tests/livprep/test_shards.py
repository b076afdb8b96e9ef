"""Our shard writer against zarr-python's: the same bytes, for every profile."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec

from livprep.schema import PROFILES, Profile
from livprep.store.shards import morton_order, write_shard

SMALL = {name: replace(profile, inner_zyx=(4, 5, 6)) for name, profile in PROFILES.items()}


def by_zarr(path: Path, values: np.ndarray, profile: Profile) -> zarr.Array:
    """The volume as zarr-python writes it."""
    blosc = BloscCodec(
        typesize=values.itemsize,
        cname=profile.codec or "lz4",
        clevel=profile.level,
        shuffle="shuffle" if values.itemsize > 1 else "noshuffle",
        blocksize=profile.block_bytes,
    )
    shard = tuple(-(-size // inner) * inner for size, inner in zip(values.shape, profile.inner_zyx, strict=True))
    array = zarr.create_array(
        store=path,
        shape=values.shape,
        dtype=values.dtype,
        chunks=profile.inner_zyx,
        shards=shard,
        compressors=[Crc32cCodec()] if profile.codec is None else [blosc, Crc32cCodec()],
        filters=None,
        fill_value=0,
    )
    array[...] = values
    return array


@given(
    st.tuples(*[st.integers(1, 17)] * 3),
    st.sampled_from([np.uint8, np.int16, np.uint16]),
    st.sampled_from(sorted(PROFILES)),
    st.integers(0, 2**32),
    st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_a_shard_is_read_as_it_was_written(tmp_path_factory, shape, dtype, name, seed, empty) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 200, shape).astype(dtype)
    values[rng.random(shape[0]) < empty] = 0  # chunks of zeros alone are left out
    profile = SMALL[name]
    path = tmp_path_factory.mktemp("shard")
    array = by_zarr(path / "theirs", values, profile)
    theirs = path / "theirs/c/0/0/0"
    expected = theirs.read_bytes() if theirs.exists() else None
    facts = write_shard(theirs, shape, values.__getitem__, profile)
    if expected is None:
        assert facts is None
        assert not theirs.exists()
        return
    written = theirs.read_bytes()
    assert facts is not None
    assert (facts.size, facts.sha256) == (len(written), hashlib.sha256(written).hexdigest())
    np.testing.assert_array_equal(array[...], values)
    assert len(written) == len(expected)


@pytest.mark.skipif(not zarr.__version__.startswith("3.1."), reason="newer zarr may order the chunks otherwise")
@pytest.mark.parametrize("name", sorted(PROFILES))
def test_the_file_is_zarrs_to_the_byte(tmp_path: Path, name: str) -> None:
    values = np.random.default_rng(0).integers(0, 3000, (17, 23, 40)).astype(np.uint16)
    by_zarr(tmp_path / "theirs", values, SMALL[name])
    write_shard(tmp_path / "ours", values.shape, values.__getitem__, SMALL[name])
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs/c/0/0/0").read_bytes()


@given(st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_every_place_comes_once(counts: list[int]) -> None:
    places = list(morton_order(counts))
    assert sorted(places) == sorted(np.ndindex(*counts))
