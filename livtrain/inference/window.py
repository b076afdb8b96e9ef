"""The sliding window: a volume patch by patch, averaged with Gaussian weights, in slabs that are handed on.

Why not MONAI's `sliding_window_inference`: it needs the whole image as float32, the result of the whole volume and a
second volume for the sums of the weights, and lifts every weight to at least 1e-3, which lets patch borders speak.
Here the image stays uint8 on the CPU, sums are kept for one row of patches along z, whose finished slices are handed
on and forgotten, and as the weights separate by axes, their sums are three vectors. A patch in which every channel is
0 (air, below the windows) passes through the network once and its result is reused.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from livprep.errors import UsageError
from livtrain.inference.memory import MOST_PATCHES, PatchBatch, free_bytes, is_out_of_memory
from livtrain.inference.patches import SIGMA_SCALE, gaussian_profile, pad_to_patch, summed_profiles, window_starts
from livtrain.stages import probabilities

FloatVolume = npt.NDArray[np.float32]
Shape = tuple[int, int, int]
Slab = tuple[int, FloatVolume]
"""First slice, and values `(K, slices, y, x)`; slabs of a volume follow one another along z without gaps."""
Accumulate = Literal["auto", "cpu", "device"]

_SPARE = 4
"""Sums lie on the device where they and this many times as much fit."""


@dataclass
class Clock:
    """Seconds spent in networks, and patches that passed through them."""

    network_s: float = 0.0
    patches: int = 0


@dataclass(frozen=True)
class WindowSettings:
    """How a network is moved over a volume.

    Parameters
    ----------
    patch_zyx
        Patch in voxels.
    overlap
        Fraction of a patch that neighbors share, in [0, 1).
    batch
        Patches a forward pass; None takes as many as fit, at most `most`. Fewer after memory ran out.
    amp
        bfloat16 autocast.
    tta
        Mean over the 8 mirrorings of each patch.
    accumulate
        Where sums are kept; `auto` is the device where they fit well.
    sigma_scale
        Standard deviation of the weights as a fraction of the patch.
    """

    patch_zyx: Sequence[int]
    overlap: float = 0.5
    batch: int | None = 1
    amp: bool = False
    tta: bool = False
    accumulate: Accumulate = "auto"
    sigma_scale: float = SIGMA_SCALE
    most: int = MOST_PATCHES
    clock: Clock = field(default_factory=Clock, compare=False)


def sliding_window(
    network: nn.Module,
    image_CZYX: Tensor | npt.NDArray[Any],
    patch_zyx: Sequence[int],
    overlap: float = 0.5,
    device: torch.device | str = "cpu",
    batch: int = 1,
    amp: bool = False,
    tta: bool = False,
    sigma_scale: float = SIGMA_SCALE,
) -> FloatVolume:
    """Predict a volume; see `window_slabs` for the parameters.

    Returns
    -------
    float32 `(K, z, y, x)` probabilities.
    """
    settings = WindowSettings(patch_zyx, overlap, batch, amp, tta, sigma_scale=sigma_scale)
    slabs = [values for _, values in window_slabs(network, image_CZYX, settings, device)]
    return np.concatenate(slabs, axis=1)


def window_slabs(
    network: nn.Module,
    image_CZYX: Tensor | npt.NDArray[Any],
    settings: WindowSettings,
    device: torch.device | str = "cpu",
) -> Iterator[Slab]:
    """Predict a volume, handing on its slices from the first on as they are finished.

    Probabilities (sigmoid of one logit map, softmax of several) are averaged with Gaussian weights. A volume shorter
    than the patch is padded on both sides with 0, the windows' low end. Memory beside the image: sums of one patch's
    depth, `K * patch z * y * x` float32.

    Parameters
    ----------
    network
        Maps `(B, C, Z, Y, X)` float32 in 0...1 to logits `(B, K, Z, Y, X)` in evaluation mode.
    image_CZYX
        Channels: uint8 0...255, or float already in 0...1.
    device
        Where the network runs; it is moved there.

    Raises
    ------
    UsageError
        Overlap, batch or the image's axes are unusable.
    SourceError
        CASE_TOO_LARGE: one patch does not fit into the memory.
    """
    image = torch.as_tensor(image_CZYX)
    overlap, batch = settings.overlap, settings.batch
    if not 0 <= overlap < 1 or (batch is not None and batch < 1) or image.ndim != 4:
        raise UsageError(
            "USAGE",
            f"sliding window: image {tuple(image.shape)}, overlap {overlap:g}, batch {batch}; expected "
            "(channel, z, y, x), an overlap in [0, 1) and a batch of at least 1",
        )
    padded, inside = pad_to_patch(image, settings.patch_zyx)
    was_training = network.training
    network.to(device).eval()
    try:
        for start, values in _Row(network, padded, settings, torch.device(device)).slabs():
            # only slices that are no padding, from the first such one on
            first, last = max(start, inside[0].start), min(start + values.shape[1], inside[0].stop)
            if first < last:
                kept = values[:, first - start : last - start, inside[1], inside[2]]
                yield first - inside[0].start, np.ascontiguousarray(kept)
    finally:
        network.train(was_training)


class _Row:
    """One row of patches along z after the other, and the sums of as many slices as a patch is deep."""

    def __init__(self, network: nn.Module, image: Tensor, settings: WindowSettings, device: torch.device) -> None:
        self._network, self._image, self._settings, self._device = network, image, settings, device
        shape, patch = image.shape[1:], settings.patch_zyx
        self._starts = [window_starts(n, p, settings.overlap) for n, p in zip(shape, patch, strict=True)]
        profiles = [gaussian_profile(p, settings.sigma_scale) for p in patch]
        self._weight_ZYX = torch.from_numpy(np.einsum("i,j,k->ijk", *profiles)).to(device)
        self._sums = [
            summed_profiles(n, starts, profile)
            for n, starts, profile in zip(shape, self._starts, profiles, strict=True)
        ]
        self._batch = PatchBatch(network, device, settings.batch, settings.most)
        self._total: Tensor | None = None
        self._air: Tensor | None = None

    def slabs(self) -> Iterator[Slab]:
        """Finished slices: those that the next row does not reach."""
        starts = self._starts[0]
        depth = self._settings.patch_zyx[0]
        for start, following in itertools.pairwise([*starts, starts[-1] + depth]):
            self._add_row(start)
            yield start, self._finished(start, following - start)
            self._move(following - start)

    def _add_row(self, z: int) -> None:
        depth, height, width = self._settings.patch_zyx
        places = [(slice(y, y + height), slice(x, x + width)) for y in self._starts[1] for x in self._starts[2]]
        planes = self._image[:, z : z + depth]
        filled = [place for place in places if planes[(..., *place)].any()]
        empty = [place for place in places if place not in filled] if len(filled) < len(places) else []

        def forward(chunk: Sequence[Any]) -> Tensor:
            return self._weighted([planes[(..., *place)] for place in chunk])

        self._batch.run(filled, forward, self._add)
        if empty and self._air is None:

            def keep(chunk: Sequence[Any], weighted: Tensor) -> None:
                self._air = weighted[0]

            self._batch.run(empty[:1], forward, keep)
        for place in empty:  # all-air patches share one result
            assert self._air is not None
            self._add([place], self._air[None])

    @torch.inference_mode()
    def _weighted(self, patches: Sequence[Tensor]) -> Tensor:
        """Probabilities of patches times the weights, `(B, K, Z, Y, X)` float32 on the device."""
        started = time.perf_counter()
        x_BCZYX = _unit(torch.stack(list(patches)).to(self._device))
        weighted = _forward(self._network, x_BCZYX, self._settings.amp, self._settings.tta) * self._weight_ZYX
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # else the time would be that of asking
        clock = self._settings.clock
        clock.network_s += time.perf_counter() - started
        clock.patches += len(patches)
        return weighted

    @torch.inference_mode()
    def _add(self, places: Sequence[Any], weighted: Tensor) -> None:
        if self._total is None:
            self._total = self._zeros(weighted.shape[1])
        moved = weighted.to(self._total.device)
        for place, values in zip(places, moved, strict=True):
            self._total[(..., *place)] += values

    def _zeros(self, maps: int) -> Tensor:
        """Room for the sums, on the device where it is wanted and fits."""
        shape = (maps, self._settings.patch_zyx[0], *self._image.shape[2:])
        where = self._settings.accumulate
        needed = 4 * int(np.prod(shape))
        fits = self._device.type == "cpu" or free_bytes(self._device) > _SPARE * needed
        if where == "device" or (where == "auto" and fits):
            try:
                return torch.zeros(shape, device=self._device)
            except (MemoryError, RuntimeError) as error:
                if self._device.type == "cpu" or not is_out_of_memory(error):
                    raise
        return torch.zeros(shape)

    @torch.inference_mode()
    def _finished(self, start: int, count: int) -> FloatVolume:
        """The first `count` slices of the sums, divided by the sums of the weights."""
        assert self._total is not None  # a row has at least one patch
        values: FloatVolume = self._total[:, :count].cpu().numpy().copy()
        for axis, sums in enumerate(self._sums):
            part = sums[start : start + count] if axis == 0 else sums
            shape = [1, 1, 1, 1]
            shape[axis + 1] = -1
            values /= part.reshape(shape)
        return np.clip(values, 0, 1, out=values)

    @torch.inference_mode()
    def _move(self, count: int) -> None:
        """Forget the first `count` slices of the sums and make room for as many new ones."""
        assert self._total is not None
        depth = self._total.shape[1]
        for z in range(depth - count):  # slice by slice, so that nothing is held twice
            self._total[:, z] = self._total[:, z + count]
        self._total[:, depth - count :] = 0


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has bfloat16 of its own; CUDA devices before Ampere (compute capability 8.0) imitate it."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def _unit(patches: Tensor) -> Tensor:
    """Network input: uint8 / 255 as float32; floats are taken as they are."""
    return patches.float() / 255 if patches.dtype == torch.uint8 else patches.float()


def _forward(network: Callable[[Tensor], Tensor], x_BCZYX: Tensor, amp: bool, tta: bool) -> Tensor:
    """Probabilities of a batch of patches; the mean over the 8 mirrorings with `tta`."""
    flips = [axes for n in range(4) for axes in itertools.combinations((2, 3, 4), n)] if tta else [()]
    total: Tensor | None = None
    with torch.autocast(x_BCZYX.device.type, dtype=torch.bfloat16, enabled=amp):
        for axes in flips:
            logits = network(x_BCZYX.flip(axes))
            p = probabilities(logits).flip(axes)
            total = p if total is None else total + p
    assert total is not None
    return total / len(flips)
