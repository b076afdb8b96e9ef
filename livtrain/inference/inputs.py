"""What the networks see of a scan: prepared and windowed as in training, made once for all that share it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from livprep.errors import StoreError
from livprep.geometry import Geometry
from livprep.prepare import Preparation, prepare, prepare_labels
from livprep.windows import WindowBank
from livtrain.inference.models import StageModel
from livtrain.inference.scans import LoadedScan
from livtrain.inference.window import Slab
from livtrain.model import model_input
from livtrain.postprocess import BoolArray, Box, surroundings
from livtrain.stages import LIVER_MARGIN_MM

Key = tuple[str, WindowBank, bool]
"""Digest of the preparation, channels, whether these are learned."""

_VOID_SLICES = 32
"""Slices without a network's values that are handed on at once."""


def _key(model: StageModel) -> Key:
    return model.preparation.digest, model.settings.bank, model.settings.learn_windows


class ScanInputs:
    """Channels of one scan for any model.

    Parameters
    ----------
    scan
        With HU on the source's grid or on a store's.
    """

    def __init__(self, scan: LoadedScan) -> None:
        self._scan = scan
        self._hu: dict[str, npt.NDArray[np.int16]] = {}
        self._channels: dict[Key, npt.NDArray[Any]] = {}

    def grid(self, model: StageModel) -> Geometry:
        """The grid of the model's preparation."""
        return model.preparation.grid(self._scan.source)

    def channels(self, model: StageModel) -> npt.NDArray[Any]:
        """The network's input, `(c, z, y, x)`: uint8 equal to the stored channels of the same preparation.

        Networks that learned their windows take int16 HU + 1024 (`livtrain.model`). Windows are
        applied to the whole scan: some look at all of its values.

        Raises
        ------
        StoreError
            STORE_PREPARATION: the scan was resampled otherwise than the network's training data.
        """
        key = _key(model)
        if key not in self._channels:
            self._channels[key] = model_input(model.settings, self._prepared(model.preparation))
        return self._channels[key]

    def keep_only(self, models: Iterable[StageModel]) -> None:
        """Forget what no model of these needs."""
        wanted = {_key(model) for model in models}
        self._channels = {key: channels for key, channels in self._channels.items() if key in wanted}
        self._hu = {digest: hu for digest, hu in self._hu.items() if digest in {key[0] for key in wanted}}

    def _prepared(self, wanted: Preparation) -> npt.NDArray[np.int16]:
        scan = self._scan
        if wanted.digest not in self._hu:
            if scan.prepared is not None and not scan.prepared.is_native and scan.prepared != wanted:
                raise StoreError(
                    "STORE_PREPARATION",
                    f"{scan.name}: stored at spacing {scan.prepared.spacing_mm} mm (zyx), the run was trained at "
                    f"{wanted.spacing_mm}; predict from the source files instead",
                )
            volume = scan.volume if scan.prepared == wanted else prepare(scan.volume, wanted)
            self._hu[wanted.digest] = volume.image.hu
        return self._hu[wanted.digest]

    def near_liver(self, liver: BoolArray, canonical: Geometry, model: StageModel) -> BoolArray:
        """The liver of the source's grid in LPS order, dilated by the margin, on the model's grid."""
        moved = prepare_labels(liver.view(np.uint8), canonical, model.preparation)
        return surroundings(moved.labels > 0, moved.geometry.spacing_mm, LIVER_MARGIN_MM)


def placed(slabs: Iterable[Slab], box: Box, near: BoolArray) -> Iterator[Slab]:
    """Slabs `(1, z, y, x)` of a box as slabs of the whole volume; 0 outside of `near`."""
    for start, values in slabs:
        at = (slice(box[0].start + start, box[0].start + start + values.shape[1]), *box[1:])
        whole = np.zeros((1, values.shape[1], *near.shape[1:]), dtype=np.float32)
        whole[(slice(None), slice(None), *box[1:])] = values * near[at]
        yield at[0].start, whole


def between(slabs: Iterable[Slab], shape_zyx: tuple[int, ...], first: int = 0) -> Iterator[Slab]:
    """Slabs with zeros where none lie: before the first and after the last slice."""
    done = first
    for start, values in slabs:
        yield from _void(done, start, shape_zyx)
        yield start, values
        done = start + values.shape[1]
    yield from _void(done, shape_zyx[0], shape_zyx)


def _void(first: int, last: int, shape_zyx: tuple[int, ...]) -> Iterator[Slab]:
    for start in range(first, last, _VOID_SLICES):
        yield start, np.zeros((1, min(_VOID_SLICES, last - start), *shape_zyx[1:]), dtype=np.float32)


def mean_slabs(members: list[Iterator[Slab]]) -> Iterator[Slab]:
    """Mean of volumes that come in slabs of different depths; one slab of each is held."""
    if len(members) == 1:
        yield from members[0]
        return
    held = [next(member) for member in members]
    done = 0
    while True:
        end = min(start + values.shape[1] for start, values in held)
        total = held[0][1][:, done - held[0][0] : end - held[0][0]].copy()
        for start, values in held[1:]:
            total += values[:, done - start : end - start]
        total /= np.float32(len(held))
        yield done, total
        done = end
        for place, (start, values) in enumerate(held):
            if start + values.shape[1] == done:
                following = next(members[place], None)
                if following is None:
                    return  # all of them end with the volume
                held[place] = following
