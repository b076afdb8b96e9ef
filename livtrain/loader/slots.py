"""Host memory of batches, used again once nobody refers to it.

Fresh memory of 10 MB and more costs two to eight times the work that fills it (page faults; streaming.md, C), so the
buffers of batches go round in a ring. Nothing has to be given back by hand, and no batch that somebody still holds is
overwritten: an array is lent out, every tensor and view made of it keeps the array alive, and the memory below it
returns to the ring when the array is gone.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class SlotPool:
    """A ring of buffers of one dtype; any thread may take from it.

    Parameters
    ----------
    dtype
        Of the arrays.
    pinned
        Page-locked memory, from which CUDA copies while the processor goes on.
    """

    def __init__(self, dtype: npt.DTypeLike, *, pinned: bool = False) -> None:
        self._dtype, self._pinned = np.dtype(dtype), pinned
        self._free: deque[Tensor] = deque()
        self.made = 0
        """Buffers allocated so far."""

    def take(self, shape: Sequence[int]) -> npt.NDArray[Any]:
        """An array of that shape with any content. Refer to it, or to a tensor of it, as long as it is in use."""
        size = math.prod(shape) * self._dtype.itemsize
        buffer = self._buffer(size)
        memory: Any = buffer.numpy()
        # numpy's views refer to the owner of the memory, not to the array they were made from, so what is lent out
        # must look like an owner: an array over the buffer interface of the array below.
        lent = np.frombuffer(memoryview(memory)[:size], dtype=self._dtype).reshape(shape)
        owner = lent if lent.base is None else _root(lent)
        weakref.finalize(owner, self._free.append, buffer).atexit = False
        return lent

    @staticmethod
    def tensor(array: npt.NDArray[Any]) -> Tensor:
        """A tensor over an array that was taken, without a copy."""
        return torch.from_numpy(array)

    def _buffer(self, size: int) -> Tensor:
        while True:
            try:
                buffer = self._free.pop()  # the one used last is the likeliest to be in a cache
            except IndexError:
                self.made += 1
                return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
            if buffer.numel() >= size:  # one that is too small is dropped: the shapes of a run grow to their largest
                return buffer


def _root(array: npt.NDArray[Any]) -> Any:
    """The array at the bottom of a chain of views; what numpy lets views refer to."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
