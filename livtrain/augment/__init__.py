"""Random changes of patches, on the device that holds them.

What happens to patch k is a pure function of (seed, k): it does not depend on workers, on the batch it comes in,
on resuming or, up to rounding and the noise's generator, on the device.
"""

from livtrain.augment.batch import Augmenter
from livtrain.augment.geometry import needed_margin

__all__ = ["Augmenter", "needed_margin"]
