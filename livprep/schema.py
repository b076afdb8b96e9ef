"""What a store says about itself: format version, preparation, case and window attributes, codec profiles.

These models are the `livprep` attribute of the store's groups; `SCHEMA_VERSION` grows with every change that an
older reader would misread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from livprep.channels import channel_of
from livprep.intensity import Intensity
from livprep.windows import Window

SCHEMA_VERSION = 1
PACKED_LOW_HU, PACKED_HIGH_HU = -1024, 3071
INDEX_POINTS = 4096
"""Most coordinates kept of each class (streaming.md, E)."""

ProfileName = Literal["fast", "balanced", "small"]


@dataclass(frozen=True)
class Profile:
    """Chunk and compression of the volumes; Blosc settings are None where nothing is compressed."""

    name: ProfileName
    inner_zyx: tuple[int, int, int]
    codec: str | None
    level: int
    block_bytes: int


PROFILES: dict[ProfileName, Profile] = {
    # Chunk and codec: measured (streaming.md, A1 and A3); 16 KiB blocks allow partial decoding along z.
    "fast": Profile("fast", (64, 64, 64), None, 0, 0),
    "balanced": Profile("balanced", (64, 64, 64), "lz4hc", 5, 16384),
    "small": Profile("small", (64, 64, 64), "zstd", 3, 65536),
}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoreMeta(_Model):
    """Attributes of the store's root: one preparation and one profile for all cases."""

    schema_version: int
    created_with: str
    catalog_digest: str
    preparation: dict[str, Any]
    profile: ProfileName


class SourceMeta(_Model):
    """Where a case came from; no path and no header text."""

    kind: Literal["dicom", "nifti"]
    files: int
    bytes: int
    digest: str


class CaseMeta(_Model):
    """Attributes of one case; grids are `Geometry.as_dict()`, affines map index (x, y, z, 1) to mm."""

    schema_version: int
    case: str
    dataset: str
    patient: str
    source: SourceMeta
    settings_digest: str
    grid: dict[str, Any]
    affine_lps: list[list[float]]
    affine_ras: list[list[float]]
    source_grid: dict[str, Any]
    source_affine_ras: list[list[float]]
    source_orientation: str
    source_spacing_mm: list[float]
    hu_min: int
    hu_max: int
    label_map: dict[str, int]
    label_voxels: dict[str, int] | None
    fingerprint: str
    repairs: list[str]
    warnings: list[str]
    hu_sanity: Intensity | None = None
    """What the source's values show (`livprep.intensity`); None where nobody looked."""


class WindowMeta(_Model):
    """Attributes of one windowed channel; channels are ordered by `order`, then name.

    `parameters` is what the function needs beside level and width, `measured` what it found in this case. A linear
    window has neither, and its record is that of the first stores.
    """

    name: str
    wl: float
    ww: float
    function: str
    order: int
    parameters: dict[str, Any] = Field(default_factory=dict)
    measured: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def of(cls, channel: Window, order: int, hu: npt.NDArray[np.int16]) -> WindowMeta:
        """The record of a channel that is made of a volume."""
        return cls(
            name=channel.name,
            wl=channel.center_hu,
            ww=channel.width_hu,
            function=channel.function,
            order=order,
            parameters=channel.parameters,
            measured=channel.measured(hu),
        )

    def channel(self) -> Window:
        """What makes the channel again of any scan; UsageError where this version does not know how."""
        return channel_of(self.name, self.wl, self.ww, self.function, self.parameters)

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        record: dict[str, Any] = handler(self)
        optional = ("parameters", "measured")
        return {key: value for key, value in record.items() if key not in optional or value}
