"""Small arrays of the host on their way to the device that holds the patches."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def moved(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """The array on a device, without a copy on the CPU.

    From pageable memory torch waits until the device has done all that was asked of it before, and each patch that is
    turned would stop the host. From page-locked memory, which its allocator keeps until it was read, it does not.
    """
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
