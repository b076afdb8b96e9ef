"""From organs to HU: contrast, partial volume, texture and noise of a scan."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from livprep.phantom.drawing import Codes
from livprep.phantom.field import Axes, Field, FloatArray, stream
from livprep.phantom.organs import Findings, Organ, hu_table

HU_MIN = -1024
HU_MAX = 1023
"""3DIRCADb cuts HU off here (datasets.md, A.3); the dense end is metal and cortical bone."""
_TEXTURE_SCALE_MM = 13.0
_TEXTURE_HU = 4.0
_BLUR_PIXELS = 0.5
_NOISE_PIXELS = 0.6
_NOISE_STD_AFTER_BLUR = 0.4744
"""Standard deviation of unit white noise after the Gaussian of `_NOISE_PIXELS` in two dimensions."""


class Renderer:
    """Gives organs their HU, slice by slice; each slice has its own random stream.

    Parameters
    ----------
    axes
        The grid.
    findings
        Contrast phase and lesions.
    """

    def __init__(self, axes: Axes, findings: Findings, patient: str, seed: int) -> None:
        self.axes = axes
        self.patient = patient
        self.seed = seed
        rng = stream(seed, patient, "contrast")
        self.table = hu_table(findings, rng)
        self.noise_hu = float(rng.uniform(7, 13))
        self.texture = Field(stream(seed, patient, "texture"), _TEXTURE_SCALE_MM).on(axes.y_mm, axes.x_mm)
        # Texture belongs to tissue; noise is weaker in air, where the detector gets more photons.
        self.texture_of = np.full(64, _TEXTURE_HU, dtype=np.float32)
        self.texture_of[[Organ.AIR, Organ.TABLE]] = 0
        self.texture_of[[Organ.LUNG_LEFT, Organ.LUNG_RIGHT]] = 25
        self.noise_of = np.full(64, self.noise_hu, dtype=np.float32)
        self.noise_of[[Organ.AIR, Organ.TABLE, Organ.LUNG_LEFT, Organ.LUNG_RIGHT]] = 0.6 * self.noise_hu

    def render(self, organs: Codes) -> npt.NDArray[np.int16]:
        """HU `(z, y, x)` int16 of an organ array of the renderer's grid."""
        hu = np.empty(organs.shape, dtype=np.int16)
        for slices in self.axes.slabs():
            codes = organs[slices]
            mean = ndimage.gaussian_filter(self.table[codes], (0, _BLUR_PIXELS, _BLUR_PIXELS), truncate=3)
            mean += self.texture.at(self.axes.z_mm[slices]) * self.texture_of[codes]
            mean += self._noise(slices, codes.shape) * self.noise_of[codes]
            hu[slices] = np.clip(np.rint(mean), HU_MIN, HU_MAX).astype(np.int16)
        hu[:, ~self._circle()] = HU_MIN
        return hu

    def _noise(self, slices: slice, shape: tuple[int, ...]) -> FloatArray:
        """Unit noise with the short in-plane correlation of a soft reconstruction kernel."""
        white = np.empty(shape, dtype=np.float32)
        for k in range(shape[0]):
            rng = stream(self.seed, self.patient, f"noise {slices.start + k}")
            white[k] = rng.standard_normal(shape[1:], dtype=np.float32)
        smooth: FloatArray = ndimage.gaussian_filter(white, (0, _NOISE_PIXELS, _NOISE_PIXELS), truncate=3)
        return smooth / np.float32(_NOISE_STD_AFTER_BLUR)

    def _circle(self) -> npt.NDArray[np.bool_]:
        """Pixels inside the reconstruction circle; scanners pad the corners."""
        y, x = (axis - axis.mean() for axis in (self.axes.y_mm, self.axes.x_mm))
        half = max(np.ptp(y), np.ptp(x)) / 2
        return np.asarray((y[:, None] / half) ** 2 + (x[None, :] / half) ** 2 <= 1.0)
