"""Drawing one patient's organs onto a slab, from the trunk inward; later organs replace earlier ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from livprep.geometry import Triple
from livprep.phantom.anatomy import Anatomy, BoolArray, Trunk
from livprep.phantom.field import Box, FloatArray, Slab
from livprep.phantom.organs import Organ
from livprep.phantom.shapes import ellipsoid, rotation, smooth_max, tube

Codes = npt.NDArray[np.uint8]
Part = tuple[Box, FloatArray]


def paint(codes: Codes, part: Part | None, organ: int, within: BoolArray | None = None, level: float = 0.0) -> None:
    """Give the voxels inside a shape (below `level` mm) an organ, where `within` (of the whole slab) allows it."""
    if part is None:
        return
    box, values = part
    inside = values < level
    if within is not None:
        inside &= within[box]
    codes[box][inside] = organ


def _paint_all(codes: Codes, parts: Iterable[Part], organ: int, within: BoolArray | None = None) -> None:
    for part in parts:
        paint(codes, part, organ, within)


def _shifted(point: Triple, anatomy: Anatomy) -> Triple:
    x, y, z = (p + s for p, s in zip(point, anatomy.shift, strict=True))
    return x, y, z


def draw_trunk(codes: Codes, slab: Slab, trunk: Trunk, anatomy: Anatomy) -> None:
    """Skin, fat, muscle wall, ribs, visceral fat, lungs and heart."""
    depth, cavity = trunk.depth, trunk.cavity
    codes[depth > 0] = Organ.SKIN
    codes[depth > 2.2] = Organ.FAT
    codes[depth > anatomy.fat + 1.5 * slab.rough] = Organ.MUSCLE
    _draw_ribs(codes, slab, cavity, anatomy)
    inside = cavity > 0
    codes[inside] = Organ.VISCERAL_FAT
    above = inside & (slab.z > trunk.diaphragm)
    codes[above & (slab.z < trunk.diaphragm + 3)] = Organ.MUSCLE
    lung = above & (slab.z > trunk.diaphragm + 3) & (np.abs(slab.x - 6) > 30 - 0.1 * slab.y)
    codes[lung & (slab.x < 0)] = Organ.LUNG_RIGHT
    codes[lung & (slab.x >= 0)] = Organ.LUNG_LEFT
    codes[lung & (slab.rough > 1.55)] = Organ.LUNG_VESSEL
    heart = ellipsoid(slab, (22.0, -36.0, anatomy.dome_left + 34), (56.0, 44.0, 44.0), rotation(0, 18, 20))
    paint(codes, heart, Organ.HEART, above)


def _draw_ribs(codes: Codes, slab: Slab, cavity: FloatArray, anatomy: Anatomy) -> None:
    """Ribs: slanted rounded bars in the wall, gristle toward the front, none below the costal margin."""
    bar = np.mod(slab.z - np.float32(0.5) * slab.y + np.float32(anatomy.rib_phase), np.float32(30)) - np.float32(15)
    across = cavity + np.float32(6.5)
    round_bar = bar * bar * np.float32(1 / 36) + across * across * np.float32(1 / 24)
    there = (slab.z > -28 - 0.6 * slab.y) & ((slab.y < anatomy.spine_y - 5) | (np.abs(slab.x) > 48))
    there &= ~((slab.y < 0) & (np.abs(slab.x) < 34))
    rib = there & (round_bar < 1)
    front = slab.y < -0.5 * anatomy.body_y
    codes[rib & front] = Organ.CARTILAGE
    codes[rib & ~front] = Organ.CORTEX
    codes[rib & ~front & (round_bar < 0.3)] = Organ.MARROW


def draw_bowel(codes: Codes, slab: Slab, inside: BoolArray, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Colon with gas and loops of small bowel below the liver.

    `rng` must be in the same state for every slab, as the loops span slabs.
    """
    for x, y in ((-104.0, -8.0), (112.0, 14.0)):
        points = [(x, y, -140.0), (x * 0.97, y - 8, -95.0), (x, y, -45.0 if x < 0 else -10.0)]
        _paint_all(codes, tube(slab, points, 21.0), Organ.BOWEL, inside)
        gas = [(px, py - 5, pz) for px, py, pz in points]
        _paint_all(codes, tube(slab, gas, 11.0), Organ.BOWEL_GAS, inside)
    front = -anatomy.body_y + anatomy.fat + anatomy.wall + 24
    transverse = [(-95.0, front + 25, -62.0), (-40.0, front, -78.0), (35.0, front, -74.0), (100.0, front + 30, -30.0)]
    _paint_all(codes, tube(slab, transverse, 18.0), Organ.BOWEL, inside)
    _paint_all(codes, tube(slab, [(x, y - 5, z) for x, y, z in transverse], 10.0), Organ.BOWEL_GAS, inside)
    for _ in range(26):
        center = (float(rng.uniform(-80, 90)), float(rng.uniform(front + 8, 12)), float(rng.uniform(-150, -38)))
        length, width = float(rng.uniform(24, 44)), float(rng.uniform(12, 18))
        loop = ellipsoid(slab, center, (length, width, width), rotation(*(float(a) for a in rng.uniform(-60, 60, 3))))
        paint(codes, loop, Organ.BOWEL, inside)
        if rng.random() < 0.3:
            paint(codes, loop, Organ.BOWEL_GAS, inside & (slab.y < center[1] - 3), level=-4.0)


def draw_left_side(codes: Codes, slab: Slab, trunk: Trunk, anatomy: Anatomy) -> None:
    """Stomach with an air level, pancreas and spleen."""
    scale = anatomy.organ_scale
    below = np.maximum(slab.z - trunk.diaphragm + 2, 3 - trunk.cavity)
    center = _shifted((62.0, -30.0, 22.0), anatomy)
    part = ellipsoid(slab, center, (46 * scale, 40 * scale, 54 * scale), rotation(20, 25, 0), margin_mm=8)
    if part is not None:
        box, values = part
        stomach = smooth_max(values + 3 * slab.rough[box], below[box], 8.0)
        paint(codes, (box, stomach), Organ.STOMACH)
        air = slab.y < center[1] - 10
        paint(codes, (box, stomach), Organ.STOMACH_GAS, air, level=-4.0)
    pancreas = [
        _shifted(p, anatomy) for p in ((-28.0, -8.0, -38.0), (8.0, -22.0, -24.0), (48.0, 0.0, -10.0), (82.0, 22.0, 4.0))
    ]
    inside = trunk.cavity > 4
    _paint_all(codes, tube(slab, pancreas, 14.0, 8.0), Organ.PANCREAS, inside)
    center = _shifted((104.0, 42.0, 20.0), anatomy)
    part = ellipsoid(slab, center, (30 * scale, 50 * scale, 54 * scale), rotation(-15, 8, -25), margin_mm=8)
    if part is not None:
        box, values = part
        paint(codes, (box, smooth_max(values + 2 * slab.rough[box], below[box] - 1, 10.0)), Organ.SPLEEN)


def liver_shape(slab: Slab, trunk: Trunk, anatomy: Anatomy) -> FloatArray:
    """The liver on a slab: a wedge under the right dome that thins out to the left, negative inside, in mm."""
    dx, dy, dz = anatomy.shift
    x, y, z = slab.x - np.float32(dx), slab.y - np.float32(dy), slab.z - np.float32(dz)
    top = slab.z - trunk.diaphragm + np.float32(0.5)
    wall = np.float32(1.5) - trunk.cavity
    edge = (
        np.float32(anatomy.liver_low)
        + np.maximum(x + 88, 0) * np.float32(0.74)
        + np.maximum(y + 25, 0) * np.float32(0.3)
    )
    bottom = (edge - z) * np.float32(0.78)
    back = (y - np.float32(anatomy.liver_posterior) + (x + 42) * np.float32(0.66)) * np.float32(0.83)
    left = x - np.float32(anatomy.liver_left)
    shape = smooth_max(smooth_max(left, bottom, 22.0), back, 22.0)
    fissure = np.sqrt(((x - 8) * np.float32(1 / 5)) ** 2 + ((y + 78) * np.float32(1 / 34)) ** 2) - 1
    shape = smooth_max(shape, fissure * np.float32(-12), 5.0)
    # Dents may be deeper than bumps: a bump beyond the thin lower edge would be an island.
    shape += np.maximum(np.float32(2.8) * slab.rough, np.float32(-1))
    # The liver lies against diaphragm and wall, whose own shape is smooth.
    return smooth_max(smooth_max(top, wall, 5.0), shape, 10.0)


def gallbladder_center(anatomy: Anatomy) -> Triple:
    """Middle of the gallbladder: under the liver's lower face, half sunk into it."""
    return _shifted((-40.0, -40.0, anatomy.liver_low + 48 * 0.74 - 12), anatomy)


def liver_vessels(
    anatomy: Anatomy,
) -> tuple[list[tuple[list[Triple], float, float]], list[tuple[list[Triple], float, float]]]:
    """Polylines with radii at both ends of the portal tree and of the hepatic veins."""
    hilum = (-34.0, -6.0, -2.0)
    portal: list[tuple[list[Triple], float, float]] = [
        ([(4.0, anatomy.vessel_y - 8, -60.0), (0.0, anatomy.vessel_y - 22, -38.0), hilum], 7.5, 7.0),
        ([hilum, (-66.0, 0.0, 6.0), (-96.0, -24.0, 26.0), (-116.0, -34.0, 38.0)], 6.0, 2.2),
        ([(-66.0, 0.0, 6.0), (-96.0, 26.0, 4.0), (-118.0, 34.0, -16.0)], 5.0, 2.0),
        ([(-66.0, 0.0, 6.0), (-92.0, -12.0, -22.0), (-108.0, -20.0, -44.0)], 4.5, 2.0),
        ([(-80.0, 12.0, 6.0), (-96.0, 30.0, 34.0)], 4.0, 2.0),
        ([hilum, (-8.0, -34.0, 20.0), (14.0, -52.0, 30.0), (40.0, -50.0, 38.0)], 5.0, 2.0),
    ]
    top = anatomy.dome_right
    root = (-24.0, anatomy.vessel_y - 4, top - 28)
    veins: list[tuple[list[Triple], float, float]] = [
        ([root, (-70.0, 22.0, top - 40), (-108.0, 10.0, top - 62), (-120.0, 0.0, top - 84)], 5.5, 2.2),
        ([root, (-52.0, -16.0, top - 38), (-66.0, -52.0, top - 58)], 5.0, 2.2),
        ([root, (-10.0, -26.0, top - 32), (18.0, -48.0, top - 42)], 4.5, 2.0),
    ]
    return portal, veins


def draw_liver(codes: Codes, slab: Slab, liver: FloatArray, anatomy: Anatomy) -> None:
    """Liver with its vessels; the portal trunk and the gallbladder outside it."""
    portal, veins = liver_vessels(anatomy)
    inside = liver < 0
    codes[inside] = Organ.LIVER
    outside = ~inside & (codes == Organ.VISCERAL_FAT)
    for points, start, end in portal:
        parts = tube(slab, [_shifted(p, anatomy) for p in points], start, end)
        _paint_all(codes, parts, Organ.PORTAL_IN_LIVER, inside)
        _paint_all(codes, parts, Organ.PORTAL, outside)
    for points, start, end in veins:
        _paint_all(codes, tube(slab, points, start, end), Organ.HEPATIC_VEIN, inside)
    bladder = ellipsoid(slab, gallbladder_center(anatomy), (15.0, 14.0, 30.0), rotation(-35, -20, 0))
    paint(
        codes,
        bladder,
        Organ.GALLBLADDER,
        (codes == Organ.LIVER) | (codes == Organ.VISCERAL_FAT) | (codes == Organ.BOWEL),
    )


def draw_kidneys(codes: Codes, slab: Slab, inside: BoolArray, anatomy: Anatomy) -> None:
    """Kidneys with cortex, medulla and sinus fat, adrenals above them."""
    y, scale = anatomy.spine_y + 2, anatomy.organ_scale
    sides = (
        (-1.0, -66.0, Organ.KIDNEY_RIGHT, Organ.MEDULLA_RIGHT, Organ.ADRENAL_RIGHT),
        (1.0, -52.0, Organ.KIDNEY_LEFT, Organ.MEDULLA_LEFT, Organ.ADRENAL_LEFT),
    )
    for side, z, cortex, medulla, adrenal in sides:
        turn = rotation(-10, side * 10, side * -18)
        center = (side * 66.0, y, z)
        kidney = ellipsoid(slab, center, (27 * scale, 26 * scale, 53 * scale), turn)
        if kidney is not None:
            # Perirenal fat keeps the kidney apart from liver and spleen.
            paint(codes, kidney, Organ.VISCERAL_FAT, inside, level=5.0)
            paint(codes, kidney, cortex, inside)
            paint(codes, kidney, medulla, inside, level=-8.0)
            sinus = ellipsoid(slab, (side * 56.0, y - 3, z), (14.0, 10.0, 26.0), turn)
            paint(codes, sinus, Organ.VISCERAL_FAT, inside)
        gland = [(side * 40.0, y - 10, z + 60), (side * 46.0, y - 4, z + 46), (side * 58.0, y + 8, z + 44)]
        free = inside & (codes == Organ.VISCERAL_FAT)
        _paint_all(codes, tube(slab, gland, 4.0, 3.0), adrenal, free)


def draw_back(codes: Codes, slab: Slab, trunk: Trunk, anatomy: Anatomy) -> None:
    """Back muscles, psoas, spine, and the large vessels in front of it."""
    y = anatomy.spine_y
    body = trunk.depth > anatomy.fat
    tall = (-1000.0, 1000.0)
    for side in (-1.0, 1.0):
        _paint_all(
            codes, tube(slab, [(side * 32, y + 34, tall[0]), (side * 32, y + 34, tall[1])], 25.0), Organ.MUSCLE, body
        )
        psoas: Sequence[Triple] = [(side * 42, y + 6, -200.0), (side * 37, y + 6, -70.0), (side * 28, y + 8, -20.0)]
        _paint_all(codes, tube(slab, psoas, 24.0, 5.0), Organ.MUSCLE, body)
    _draw_spine(codes, slab, anatomy)
    v = anatomy.vessel_y
    top = anatomy.dome_right
    artery: Sequence[Triple] = [(8.0, v, -300.0), (9.0, v + 1, -40.0), (12.0, v + 8, top), (20.0, v + 14, 300.0)]
    _paint_all(codes, tube(slab, artery, 9.0, 11.5), Organ.ARTERY)
    cava: Sequence[Triple] = [
        (-19.0, v + 2, -300.0),
        (-21.0, v, -30.0),
        (-24.0, v - 6, top - 26),
        (-16.0, v - 30, top + 12),
    ]
    _paint_all(codes, tube(slab, cava, 10.5, 13.0), Organ.VENA_CAVA)


def _draw_spine(codes: Codes, slab: Slab, anatomy: Anatomy) -> None:
    box = slab.box((-46.0, anatomy.spine_y - 20, -1e4), (46.0, anatomy.spine_y + 66, 1e4))
    if box is None:
        return
    x, y = slab.x[box], slab.y[box] - np.float32(anatomy.spine_y)
    level = np.mod(slab.z[box] + np.float32(anatomy.rib_phase), np.float32(33))
    out = codes[box]
    radial = (np.sqrt((x * np.float32(1 / 22)) ** 2 + (y * np.float32(1 / 16)) ** 2) - 1) * np.float32(18)
    canal = np.sqrt(x * x + (y - 25) ** 2)
    vertebra = level > 8
    arch = (canal < 15) | ((np.abs(x) < 38) & (np.abs(y - 25) < 5) & (level > 14) & (level < 24))
    arch |= (np.abs(x) < 4) & (y > 36) & (y < 58 - 0.4 * level) & (level < 24)
    out[arch & vertebra] = Organ.CORTEX
    out[(canal < 15) & ~vertebra] = Organ.MUSCLE
    out[(radial < 0) & ~vertebra] = Organ.DISC
    out[(radial < 0) & vertebra] = Organ.CORTEX
    out[(radial < -2.5) & (level > 10.5) & (level < 30.5)] = Organ.MARROW
    out[canal < 8.5] = Organ.CANAL
    codes[box] = out


def draw_table(codes: Codes, slab: Slab, top_mm: float) -> None:
    """Scanner table: a shallow curved shell below the back, in undeformed coordinates."""
    x = slab.axes.x_mm[None, None, :]
    y = slab.axes.y_mm[None, :, None] - (top_mm - 0.0011 * x * x)
    board = (np.abs(x) < 205) & (y > 0) & (y < 26)
    board = np.broadcast_to(board, codes.shape) & (codes == Organ.AIR)
    codes[board & np.broadcast_to((y < 3.5) | (y > 22.5), codes.shape)] = Organ.TABLE
