"""A batch of patches, changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from livprep.errors import UsageError
from livprep.geometry import Triple
from livprep.windows import WindowBank
from livtrain.augment.channels import apply_windows, hu_bits, label_bits
from livtrain.augment.draws import GeometryDraw, draw_geometry, draw_intensity, draw_windows
from livtrain.augment.gather import sample, sample_packed
from livtrain.augment.geometry import Shape, displacement, needed_margin, voxel_matrix
from livtrain.augment_config import AugmentSettings
from livtrain.unpack import channel_table, linear_table, unpack_into


class Augmenter:
    """Changes patches at random; what happens to a patch depends on (seed, counter) alone.

    Patches come with the margin that `margin` asks for, or without: what a turned patch then shows from beyond its
    border is 0 (the windows' low end) and background. A patch for which nothing is drawn passes bit for bit.

    Parameters
    ----------
    settings
        Probabilities and ranges.
    patch_zyx
        Shape of the result in voxels.
    seed
        Seed of the run.
    windows
        Channels in order.
    clamp
        False leaves values beyond the windows as they are, neither clipped nor rounded: HU in units of the window,
        for windows that are learned. From packed voxels only.
    """

    def __init__(
        self, settings: AugmentSettings, patch_zyx: Shape, seed: int, windows: WindowBank, *, clamp: bool = True
    ) -> None:
        self.settings, self.patch_zyx, self.seed = settings, patch_zyx, seed
        self._flat = settings.flat(patch_zyx)
        self._windows, self._clamp = windows, clamp

    def margin(self, counter: int, spacing_mm: Triple) -> Shape:
        """Voxels (zyx) to read on each side of a patch; computed on the host, by any thread."""
        return needed_margin(self._geometry(counter), self.patch_zyx, spacing_mm)

    def from_packed(
        self, packed: Sequence[Tensor] | Tensor, *, counters: Sequence[int], spacing_mm: Sequence[Triple]
    ) -> tuple[Tensor, Tensor]:
        """Change patches of packed voxels, and window them.

        Parameters
        ----------
        packed
            For each patch `(z, y, x)` uint16 of the patch and an equal margin on both sides of each axis.
        counters
            Counter of each patch.
        spacing_mm
            Voxel distances (zyx, mm) of each patch.

        Returns
        -------
        `(B, C, z, y, x)` float32 channels and `(B, z, y, x)` uint8 labels on the patches' device.

        Raises
        ------
        UsageError
            CONFIG_INVALID: a patch is smaller than the result or its margins differ. WINDOW_INVALID: a window
            reaches beyond the HU of packed voxels.
        """
        table = (channel_table if self._clamp else linear_table)(self._windows)
        image, labels, scratch = self._buffers(len(packed), packed[0].device)
        for k, (patch, counter, spacing) in enumerate(zip(packed, counters, spacing_mm, strict=True)):
            geometry = self._geometry(counter)
            jittered = draw_windows(self.settings, self._windows.windows, self.seed, counter)
            if geometry.resamples:
                self._check(patch.shape)
                matrix = voxel_matrix(geometry, spacing)
                shift = displacement(geometry, self.patch_zyx, spacing, patch.device)
                sample_packed(patch, matrix, shift, scratch, labels[k])
                apply_windows(scratch, jittered or self._windows.windows, image[k], clamp=self._clamp)
            else:
                patch = self._mirrored(self._center(patch.view(torch.int16)), geometry).contiguous()
                if jittered is None:
                    unpack_into(patch[None], table, image[k : k + 1], labels[k : k + 1])
                else:
                    labels[k] = label_bits(patch)
                    apply_windows(scratch.copy_(hu_bits(patch)), jittered, image[k], clamp=self._clamp)
            self._change_values(image[k], counter, scratch)
        return image, labels

    def from_channels(
        self,
        image: Sequence[Tensor] | Tensor,
        labels: Sequence[Tensor] | Tensor,
        *,
        counters: Sequence[int],
        spacing_mm: Sequence[Triple],
    ) -> tuple[Tensor, Tensor]:
        """Change patches of channels `(C, z, y, x)` float32 and labels `(z, y, x)` uint8; else as `from_packed`.

        Raises
        ------
        UsageError
            CONFIG_INVALID: a patch is smaller than the result, its margins differ, or windows are to be jittered,
            which needs HU.
        """
        if self.settings.window.p > 0:
            raise UsageError(
                "CONFIG_INVALID",
                "augment.window: channels that were stored cannot be windowed anew; use --set window_source=packed and "
                "channels that need no whole scan, or --set augment.window=0",
            )
        out, marks, scratch = self._buffers(len(labels), labels[0].device)
        for k, (channels, label, counter, spacing) in enumerate(zip(image, labels, counters, spacing_mm, strict=True)):
            geometry = self._geometry(counter)
            if geometry.resamples:
                self._check(label.shape)
                shift = displacement(geometry, self.patch_zyx, spacing, label.device)
                sample(channels, label, voxel_matrix(geometry, spacing), shift, out[k], marks[k])
            else:
                out[k] = self._mirrored(self._center(channels), geometry)
                marks[k] = self._mirrored(self._center(label), geometry)
            self._change_values(out[k], counter, scratch)
        return out, marks

    def _geometry(self, counter: int) -> GeometryDraw:
        return draw_geometry(self.settings, self._flat, self.seed, counter)

    def _buffers(self, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Channels and labels of the result, and scratch of one channel."""
        image = torch.empty((count, len(self._windows), *self.patch_zyx), device=device)
        labels = torch.empty((count, *self.patch_zyx), dtype=torch.uint8, device=device)
        return image, labels, torch.empty(self.patch_zyx, device=device)

    def _change_values(self, image_CZYX: Tensor, counter: int, scratch_ZYX: Tensor) -> None:
        steps = draw_intensity(self.settings, self._flat, len(image_CZYX), self.seed, counter)
        for step in steps:
            step.apply(image_CZYX[step.channel], scratch_ZYX)
        if steps and self.settings.clip and self._clamp:
            image_CZYX.clamp_(0, 1)

    def _check(self, shape: Sequence[int]) -> None:
        extra = [have - want for have, want in zip(shape[-3:], self.patch_zyx, strict=True)]
        if any(more < 0 or more % 2 for more in extra):
            raise UsageError(
                "CONFIG_INVALID",
                f"patch of {'x'.join(map(str, shape[-3:]))} voxels: expected {'x'.join(map(str, self.patch_zyx))} and "
                "an equal margin on both sides of each axis",
            )

    def _center(self, patch: Tensor) -> Tensor:
        """The patch without its margin, as a view."""
        self._check(patch.shape)
        for axis, size in zip((-3, -2, -1), self.patch_zyx, strict=True):
            patch = patch.narrow(axis, (patch.shape[axis] - size) // 2, size)
        return patch

    @staticmethod
    def _mirrored(patch: Tensor, geometry: GeometryDraw) -> Tensor:
        return patch.flip([axis - 3 for axis in geometry.flips]) if geometry.flips else patch
