"""Synthetic patients: abdominal CT in HU with exact organ masks, drawn from a seed.

A phantom has the anatomy that the product's readers and networks meet in 3DIRCADb and LiTS - liver on the patient's
right, spleen and muscle with HU near the liver's, lungs, ribs, gas, fat, a scanner table - and no voxel of a real
patient. Body outline 340 x 230 mm, smooth random deformation, sizes and findings by patient.
"""

from __future__ import annotations

from livprep.phantom.organs import Findings, Organ, draw_findings
from livprep.phantom.patient import Phantom, make_phantom

__all__ = ["Findings", "Organ", "Phantom", "draw_findings", "make_phantom"]
