"""Settings of augmentation: what may happen to a patch, how often, and how far. Imports no torch.

Every transform has its own probability and range. `p` is the probability for one patch, `p_channel` that of each
channel of a patch that was chosen; a bare number in place of a transform is its `p`, so `noise: 0` turns noise off
and keeps its range. `PRESETS` holds what a preset sets; keys that are given win.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

PresetName = Literal["none", "light", "nnunet"]
FOLDING_LIMIT = 0.4
"""Largest displacement of a cubic B-spline lattice, in lattice steps, that cannot fold space.

Choi and Lee 2000, Graphical Models 62:411: 1 / 2.4795 = 0.403 in three dimensions.
"""


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"range {value[0]:g} to {value[1]:g}: expected the lower number first")
    return value


def _positive(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] <= 0:
        raise ValueError(f"range {value[0]:g} to {value[1]:g}: expected positive numbers")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
PositiveRange = Annotated[Range, AfterValidator(_positive)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Chance(_Frozen):
    """A transform's probability for one patch."""

    p: float = Field(default=0.0, ge=0, le=1)


class Rotation(Chance):
    """Turn about each axis by up to `max_deg`; about z alone, by up to `in_plane_deg`, in flat patches."""

    max_deg: float = Field(default=15.0, ge=0, le=180)
    in_plane_deg: float = Field(default=15.0, ge=0, le=180)


class Scaling(Chance):
    """Field of view relative to the patch: 1.4 shows 1.4 times as much, and organs are smaller."""

    field: PositiveRange = (0.85, 1.15)
    isotropic: bool = True


class Shear(Chance):
    """Largest shear: mm along one axis for each mm along another."""

    max: float = Field(default=0.1, ge=0, le=1)


class Elastic(Chance):
    """Smooth displacement: a cubic B-spline lattice of `step_mm`, each point moved by up to `shift_mm` an axis."""

    step_mm: PositiveRange = (24.0, 40.0)
    shift_mm: Range = (0.0, 6.0)

    @model_validator(mode="after")
    def _does_not_fold(self) -> Elastic:
        if self.shift_mm[0] < 0 or self.shift_mm[1] > FOLDING_LIMIT * self.step_mm[0]:
            raise ValueError(
                f"shift_mm {self.shift_mm[0]:g} to {self.shift_mm[1]:g} mm with points {self.step_mm[0]:g} mm apart: "
                f"expected 0 to {FOLDING_LIMIT:g} of the distance, beyond which space folds"
            )
        return self


class WindowJitter(Chance):
    """Level moved by up to `level` of the width, width times `width`; channels are computed anew from HU."""

    level: float = Field(default=0.1, ge=0, le=1)
    width: PositiveRange = (0.9, 1.1)


class Noise(Chance):
    """Gaussian noise; `sd` is the standard deviation as a fraction of the window."""

    sd: Range = (0.0, 0.05)


class Blur(Chance):
    """Gaussian blur; `sigma` in voxels, drawn for each axis."""

    p_channel: float = Field(default=1.0, ge=0, le=1)
    sigma: PositiveRange = (0.5, 1.0)


class Brightness(Chance):
    """Multiplication of the channel."""

    factor: PositiveRange = (0.9, 1.1)


class Contrast(Chance):
    """Multiplication of the distance to the channel's mean; the channel's range is kept."""

    factor: PositiveRange = (0.9, 1.1)


class LowResolution(Chance):
    """Sampling at `zoom` of the voxels (nearest), then linear interpolation back."""

    p_channel: float = Field(default=1.0, ge=0, le=1)
    zoom: PositiveRange = (0.5, 1.0)


class Gamma(Chance):
    """Exponent on the channel scaled to its own range; `retain` gives mean and standard deviation back."""

    exponent: PositiveRange = (0.8, 1.2)
    retain: bool = True


class AugmentSettings(_Frozen):
    """What may happen to a patch, in this order; ranges of brightness, contrast and gamma are split at 1.

    Left-right flips are off in `light`: on which side the liver lies is information. In patches that are more
    than `in_plane_ratio` times longer along y or x than along z (in voxels), geometry changes stay in the plane
    and low resolution spares z, as in nnU-Net; null never restricts. `clip` ends patches whose intensity changed
    at the window's ends, 0 and 1.
    """

    preset: PresetName = "light"
    rotation: Rotation = Rotation()
    scaling: Scaling = Scaling()
    shear: Shear = Shear()
    elastic: Elastic = Elastic()
    window: WindowJitter = WindowJitter()
    noise: Noise = Noise()
    blur: Blur = Blur()
    brightness: Brightness = Brightness()
    contrast: Contrast = Contrast()
    low_resolution: LowResolution = LowResolution()
    gamma_inverted: Gamma = Gamma()
    gamma: Gamma = Gamma()
    flip_z: bool = False
    flip_y: bool = False
    flip_x: bool = False
    in_plane_ratio: float | None = Field(default=3.0, ge=1)
    clip: bool = True

    @model_validator(mode="before")
    @classmethod
    def _on_preset(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or (name := given.get("preset", "light")) not in PRESETS:
            return given
        filled = {**PRESETS[name], "preset": name}
        for key, value in given.items():
            below = filled.get(key, {})
            if key in _TRANSFORMS and isinstance(value, int | float) and not isinstance(value, bool):
                value = {"p": value}
            mergeable = isinstance(value, Mapping) and isinstance(below, Mapping)
            filled[key] = {**below, **value} if mergeable else value
        return filled

    @property
    def moves(self) -> bool:
        """Whether any patch can be resampled."""
        return any(transform.p > 0 for transform in (self.rotation, self.scaling, self.shear, self.elastic))

    def flat(self, patch_zyx: tuple[int, int, int]) -> bool:
        """Whether changes of a patch of that shape stay in its plane."""
        return self.in_plane_ratio is not None and max(patch_zyx) > self.in_plane_ratio * patch_zyx[0]


_TRANSFORMS = frozenset(
    name
    for name, field in AugmentSettings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Chance)
)

PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "light": {
        "rotation": {"p": 0.3},
        "scaling": {"p": 0.3},
        "noise": {"p": 0.2},
        "brightness": {"p": 0.2},
        "contrast": {"p": 0.2},
        "gamma": {"p": 0.2},
    },
    "nnunet": {
        "rotation": {"p": 0.2, "max_deg": 30, "in_plane_deg": 180},
        "scaling": {"p": 0.2, "field": (0.7, 1.4)},
        "noise": {"p": 0.1, "sd": (0, 0.1)},
        "blur": {"p": 0.2, "p_channel": 0.5, "sigma": (0.5, 1.0)},
        "brightness": {"p": 0.15, "factor": (0.75, 1.25)},
        "contrast": {"p": 0.15, "factor": (0.75, 1.25)},
        "low_resolution": {"p": 0.25, "p_channel": 0.5, "zoom": (0.5, 1.0)},
        "gamma_inverted": {"p": 0.1, "exponent": (0.7, 1.5)},
        "gamma": {"p": 0.3, "exponent": (0.7, 1.5)},
        "flip_z": True,
        "flip_y": True,
        "flip_x": True,
        "clip": False,
    },
}
"""`nnunet`: nnU-Net 2.8.1, nnUNetTrainer.get_training_transforms, on channels of 0...1 in place of z-scored HU.

nnU-Net's noise range is named variance and used as a standard deviation (batchgeneratorsv2 0.3.6).
"""
