"""How many patches fit into the memory at once, and what to do when they do not after all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from livprep.errors import SourceError
from livprep.machine import free_memory_bytes

Item = TypeVar("Item")

MOST_PATCHES = 32
"""More at once make no device faster."""
MOST_BYTES = 1 << 30
"""Of one layer's output: kernels count in 32 bits and split beyond (cuDNN 9.8 to 9.10 made mistakes there, pytorch
issue 163539); a layer that puts out this much keeps any device busy."""
_SHARE = 0.5
"""Of the free memory; allocators round up, and convolutions want workspace of their own."""


class Forward(Protocol):
    """Probabilities `(B, K, Z, Y, X)` of so many patches."""

    def __call__(self, chunk: Sequence[Any]) -> Tensor: ...


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: Python's, CUDA's, or torch's allocator on the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # torch raises plain RuntimeErrors for the CPU's allocator and for some CUDA libraries
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    return any(sign in text for sign in ("defaultcpuallocator", "out of memory", "alloc_failed"))


def free_bytes(device: torch.device) -> int:
    """Memory that is free now on a device, with what torch holds there and does not use."""
    if device.type != "cuda":
        return free_memory_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


class PatchBatch:
    """The number of patches a forward pass takes: as many as fit, fewer after memory ran out.

    Parameters
    ----------
    network
        Watched during the first pass where the number is to be found.
    device
        Where it runs.
    size
        The number to begin with; None starts with one patch, adds up what its layers put out (an upper bound of what
        is alive at once) and fills half of the free memory.
    limit
        Never more than this where `size` is None.
    """

    def __init__(
        self, network: nn.Module, device: torch.device, size: int | None = None, limit: int = MOST_PATCHES
    ) -> None:
        self._network, self._device, self._limit = network, device, limit
        self._measured = size is not None
        self.size = size or 1

    def run(self, items: Sequence[Item], forward: Forward, take: Callable[[Sequence[Item], Tensor], None]) -> None:
        """Pass `items` through `forward` in chunks and hand each chunk's result to `take`.

        Raises
        ------
        SourceError
            CASE_TOO_LARGE: memory runs out with a single patch.
        """
        done = 0
        while done < len(items):
            chunk = items[done : done + self.size]
            try:
                result = forward(chunk) if self._measured else self._measure(forward, chunk)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = str(error).splitlines()[0] if str(error) else type(error).__name__
            else:
                take(chunk, result)
                done += len(chunk)
                continue
            self._shrink(len(chunk), failure)  # outside of the handler, whose traceback keeps the tensors alive

    def _shrink(self, tried: int, failure: str) -> None:
        if tried == 1:
            raise SourceError(
                "CASE_TOO_LARGE",
                f"prediction: one patch does not fit into the memory of {self._device} ({failure}); "
                "free some, use --device cpu, or train with a smaller patch",
            )
        self.size = max(tried // 2, 1)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _measure(self, forward: Forward, chunk: Sequence[Any]) -> Tensor:
        """The first pass, of one patch; finds how many fit."""
        put_out = largest = 0

        def add(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal put_out, largest
            for tensor in output if isinstance(output, (tuple, list)) else (output,):
                size = tensor.nbytes if isinstance(tensor, Tensor) else 0
                put_out, largest = put_out + size, max(largest, size)

        hooks = [m.register_forward_hook(add) for m in self._network.modules() if not any(m.children())]
        try:
            result = forward(chunk)
        finally:
            for hook in hooks:
                hook.remove()
        self._measured = True
        fitting = int(_SHARE * free_bytes(self._device) / max(put_out, 1))
        self.size = max(1, min(self._limit, fitting, MOST_BYTES // max(largest, 1)))
        return result
