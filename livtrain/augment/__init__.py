"""Random changes of patches, on the device that holds them.

What happens to patch k is a pure function of (seed, k): it does not depend on workers, on the batch it comes in or
on resuming. On one kind of device, with the same torch and number of threads, the result is the same to the last
bit. Between CPU and CUDA the drawn changes are the same and the results differ in three ways: rounding (float32,
below 0.001 of the window), labels at positions midway between voxels, and noise, whose field each device's own
generator makes from the same seed.
"""

from livtrain.augment.batch import Augmenter
from livtrain.augment.geometry import needed_margin

__all__ = ["Augmenter", "needed_margin"]
