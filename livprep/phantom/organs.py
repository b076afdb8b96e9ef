"""Organs of a phantom and their HU."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from livprep.phantom.field import FloatArray, stream

TUMORS_MAX = 16


class Organ(IntEnum):
    """Value of a voxel in a phantom's organ array; tumor k has `TUMOR + k`."""

    AIR = 0
    TABLE = 1
    SKIN = 2
    FAT = 3
    MUSCLE = 4
    VISCERAL_FAT = 5
    LUNG_RIGHT = 6
    LUNG_LEFT = 7
    HEART = 8
    BOWEL = 9
    BOWEL_GAS = 10
    STOMACH = 11
    STOMACH_GAS = 12
    PANCREAS = 13
    SPLEEN = 14
    KIDNEY_RIGHT = 15
    KIDNEY_LEFT = 16
    MEDULLA_RIGHT = 17
    MEDULLA_LEFT = 18
    ADRENAL_RIGHT = 19
    ADRENAL_LEFT = 20
    ADRENAL_TUMOR_RIGHT = 21
    ADRENAL_TUMOR_LEFT = 22
    GALLBLADDER = 23
    STONE = 24
    LIVER = 25
    PORTAL_IN_LIVER = 26
    HEPATIC_VEIN = 27
    CYST = 28
    SCAR = 29
    PORTAL = 30
    VENA_CAVA = 31
    ARTERY = 32
    MARROW = 33
    CORTEX = 34
    DISC = 35
    CARTILAGE = 36
    METAL = 37
    LUNG_VESSEL = 38
    CANAL = 39
    TUMOR = 48


LIVER_SET: tuple[int, ...] = (
    Organ.LIVER, Organ.PORTAL_IN_LIVER, Organ.HEPATIC_VEIN, Organ.CYST, Organ.SCAR,
    *(Organ.TUMOR + k for k in range(TUMORS_MAX)),
)  # fmt: skip
"""Organs that a liver mask contains: it includes vessels, tumors and cysts inside the liver."""

OUTSIDE_BODY: tuple[int, ...] = (Organ.AIR, Organ.TABLE)


@dataclass(frozen=True)
class Findings:
    """What a patient has.

    Parameters
    ----------
    liver_hu
        Median HU of the liver; below about 60 the scan counts as unenhanced.
    tumors
        Number of liver tumors, 0 to 16.
    tumor_fraction
        Aimed volume of all tumors over the volume of the liver.
    cysts, scar, stones, metal
        Liver cysts, a resection scar in the liver, gallstones, a metal clip.
    adrenal_left_mm, adrenal_right_mm
        Radius of an adrenal tumor in mm; 0 for none.
    """

    liver_hu: float = 110.0
    tumors: int = 2
    tumor_fraction: float = 0.03
    cysts: int = 0
    scar: bool = False
    stones: bool = False
    metal: bool = False
    adrenal_left_mm: float = 0.0
    adrenal_right_mm: float = 0.0


def draw_findings(patient: str, seed: int, *, tumor_free: bool | None = None) -> Findings:
    """Draw findings in the proportions of real abdominal CT (liver medians 25...165 HU, 0...7 tumors)."""
    rng = stream(seed, patient, "findings")
    unenhanced = rng.random() < 0.12
    liver_hu = rng.uniform(25, 55) if unenhanced else np.clip(rng.normal(108, 18), 62, 165)
    count = int(min(7, 1 + rng.geometric(0.42) - 1))
    none = rng.random() < 0.1
    tumors = count if tumor_free is False else 0 if tumor_free or none else count
    fraction = float(np.clip(np.exp(rng.normal(-3.8, 1.1)), 0.004, 0.2))
    return Findings(
        liver_hu=float(round(float(liver_hu))),
        tumors=tumors,
        tumor_fraction=fraction if tumors else 0.0,
        cysts=int(rng.random() < 0.25),
        stones=bool(rng.random() < 0.1),
    )


def hu_table(findings: Findings, rng: np.random.Generator) -> FloatArray:
    """Mean HU by organ, `(64,)` float32, for the contrast phase that the liver's HU implies.

    Spleen and muscle lie near the liver, as in patients; vessels and kidneys follow the contrast.
    """
    liver = findings.liver_hu
    contrast = float(np.clip((liver - 55) / 55, 0, 1.6))  # 0 unenhanced, 1 portal venous
    near = liver + (rng.uniform(-12, 18) if contrast > 0 else rng.uniform(-14, -4))
    blood = 42 + contrast * rng.uniform(95, 130)
    mean = {
        Organ.AIR: -1000.0, Organ.TABLE: -560.0, Organ.SKIN: 10.0, Organ.FAT: -108.0,
        Organ.MUSCLE: 50.0 + 12 * contrast, Organ.VISCERAL_FAT: -98.0, Organ.LUNG_RIGHT: -850.0,
        Organ.LUNG_LEFT: -850.0, Organ.LUNG_VESSEL: -250.0, Organ.HEART: 40 + 0.85 * (blood - 40),
        Organ.BOWEL: rng.uniform(20, 60), Organ.BOWEL_GAS: -850.0, Organ.STOMACH: rng.uniform(5, 55),
        Organ.STOMACH_GAS: -930.0, Organ.PANCREAS: 38 + 50 * contrast, Organ.SPLEEN: near,
        Organ.KIDNEY_RIGHT: 34 + 140 * contrast, Organ.KIDNEY_LEFT: 34 + 140 * contrast,
        Organ.MEDULLA_RIGHT: 24 + 85 * contrast, Organ.MEDULLA_LEFT: 24 + 85 * contrast,
        Organ.ADRENAL_RIGHT: 30 + 40 * contrast, Organ.ADRENAL_LEFT: 30 + 40 * contrast,
        Organ.ADRENAL_TUMOR_RIGHT: 30 + 35 * contrast, Organ.ADRENAL_TUMOR_LEFT: 30 + 35 * contrast,
        Organ.GALLBLADDER: 8.0, Organ.STONE: 220.0, Organ.LIVER: liver,
        Organ.PORTAL_IN_LIVER: max(liver + 12, blood) if contrast > 0 else liver - 8,
        Organ.HEPATIC_VEIN: max(liver + 8, 0.95 * blood) if contrast > 0 else liver - 8,
        Organ.CYST: 6.0, Organ.SCAR: liver - 55, Organ.PORTAL: blood + 8 * contrast,
        Organ.VENA_CAVA: 0.9 * blood, Organ.ARTERY: blood + 15 * contrast, Organ.MARROW: 190.0,
        Organ.CORTEX: 620.0, Organ.CANAL: 18.0, Organ.DISC: 85.0, Organ.CARTILAGE: 130.0, Organ.METAL: 2600.0,
    }  # fmt: skip
    table = np.zeros(64, dtype=np.float32)
    for organ, value in mean.items():
        table[organ] = value
    for k in range(TUMORS_MAX):
        offset = rng.uniform(28, 62) if rng.random() < 0.86 else -rng.uniform(28, 55)
        table[Organ.TUMOR + k] = liver - offset * (0.55 + 0.45 * min(contrast, 1.0))
    return table
