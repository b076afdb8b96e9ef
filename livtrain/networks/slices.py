"""A 2-D network behind the contract of the 3-D ones: slices of the same store, one after the other."""

from __future__ import annotations

from torch import Tensor, nn

from livprep.errors import UsageError


class Slices(nn.Module):
    """Runs a 2-D network on every slice of a patch; a patch `(1, Y, X)` is one slice.

    Parameters
    ----------
    network
        Maps `(N, C, Y, X)` to logits `(N, K, Y, X)`.
    in_channels
        Windowed channels C.
    multiple
        Y and X must be multiples of this.
    """

    def __init__(self, network: nn.Module, in_channels: int, multiple: int) -> None:
        super().__init__()
        self.network = network
        self.in_channels, self.multiple = in_channels, multiple

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        """Compute logits `(B, K, Z, Y, X)`.

        Raises
        ------
        UsageError
            The input has another channel count, or Y or X is no multiple of what the network takes.
        """
        check_input(x_BCZYX, self.in_channels, (1, self.multiple, self.multiple))
        batch, channels, z, y, x = x_BCZYX.shape
        slices_NCYX = x_BCZYX.transpose(1, 2).reshape(batch * z, channels, y, x)
        logits: Tensor = self.network(slices_NCYX)
        return logits.reshape(batch, z, -1, y, x).transpose(1, 2)


def check_input(x_BCZYX: Tensor, in_channels: int, multiple_zyx: tuple[int, int, int]) -> None:
    """Refuse an input that a network cannot take, with what it would take.

    Raises
    ------
    UsageError
        CONFIG_INVALID: another number of axes or channels, or a size that is no multiple.
    """
    if x_BCZYX.ndim != 5 or x_BCZYX.shape[1] != in_channels:
        raise UsageError(
            "CONFIG_INVALID", f"network input {tuple(x_BCZYX.shape)}: expected (batch, {in_channels}, z, y, x)"
        )
    sizes = tuple(x_BCZYX.shape[2:])
    if any(size % multiple or size == 0 for size, multiple in zip(sizes, multiple_zyx, strict=True)):
        raise UsageError("CONFIG_INVALID", f"network input of {sizes} voxels (zyx): {multiple_text(multiple_zyx)}")


def multiple_text(multiple_zyx: tuple[int, int, int]) -> str:
    """What a patch must be a multiple of, for a message."""
    if len(set(multiple_zyx)) == 1:
        return f"every size must be a multiple of {multiple_zyx[0]}; choose another patch size"
    return f"the sizes must be a multiple of {', '.join(map(str, multiple_zyx))} (zyx); choose another patch size"
