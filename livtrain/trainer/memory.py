"""How many patches fit into a device's memory, from the sizes of what a forward pass keeps for the backward one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from livprep.errors import RunError
from livtrain.config import Settings
from livtrain.inference.memory import free_bytes, is_out_of_memory
from livtrain.model import build_model
from livtrain.stages import get_stage

MAX_BATCH = 8
"""More patches a step than this change the course of a run more than they speed it up. 8 patches of 128^3 also keep the
ResUNet's largest tensor (48 channels, half precision) below 2^31 bytes, beyond which cuDNN 9.8 to 9.10 made mistakes
(pytorch issue 163539)."""
SHARE = 0.6
"""Of the free memory; the rest is for the allocator's waste and cuDNN's workspaces."""
_BESIDE = 1.5  # activations plus the gradients and the loss's temporaries that live beside them
_COPIES = 4  # of the weights in float32: themselves, gradients, two moments


@contextmanager
def memory_told(settings: Settings) -> Iterator[None]:
    """Context whose end for lack of memory is an error with advice.

    Raises
    ------
    RunError
        OUT_OF_MEMORY.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        z, y, x = settings.patch_zyx
        raise RunError(
            "OUT_OF_MEMORY",
            f"{settings.batch} patches of {z}x{y}x{x} voxels and {settings.network} of width {settings.width} do not "
            f"fit into the memory ({' '.join(str(error).splitlines()[:1])}); lower --set batch, patch_zyx or width, or "
            "add --set activation_checkpointing=true",
        ) from error


def batch_by_memory(settings: Settings, device: torch.device) -> tuple[int, int, int]:
    """Largest power of two of patches that fits, at least 1 and at most `MAX_BATCH`.

    Returns
    -------
    The batch, its estimated bytes, and the free bytes of the device.
    """
    free = free_bytes(device)
    weights, patch = estimated_bytes(settings)
    batch = MAX_BATCH
    while batch > 1 and weights + batch * patch > SHARE * free:
        batch //= 2
    return batch, weights + batch * patch, free


def estimated_bytes(settings: Settings) -> tuple[int, int]:
    """Bytes of weights with their optimizer, and of one patch in training.

    Against the peak of one step on a CPU (float32, 48 x 64 x 64): 0.85 to 1.02 of the estimate for the ResUNet, with
    and without activation checkpointing, 0.76 for a slice of the 2-D U-Net.
    """
    weights, plain = _kept_bytes(settings, recompute=False)
    activations = plain
    if settings.activation_checkpointing:
        # The finest block, computed again as a whole, holds about half of what was spared.
        activations = (plain + _kept_bytes(settings, recompute=True)[1]) // 2
    size = {"none": 1.0, "fp64": 2.0}.get(settings.amp, 0.5)
    return _COPIES * weights, round(_BESIDE * size * activations)


def _kept_bytes(settings: Settings, *, recompute: bool) -> tuple[int, int]:
    """Bytes of the weights, and of what the forward pass of one patch keeps for the backward one, in float32.

    The network runs on torch's meta device, which computes shapes alone, so this takes no memory.
    """
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.device("meta"):
        out_channels = get_stage(settings.stage).out_channels
        network = build_model(settings, out_channels, dropout=settings.dropout, recompute=recompute).train()
        x = torch.empty(1, 1 if settings.learn_windows else len(settings.bank), *settings.patch_zyx)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maps = network(x)
    del maps
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    return weights, max(sum(kept.values()) - weights, 0)  # convolutions keep their weights too
