"""The ResUNet's graph: counts, shapes, residuals, initialization."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from livprep.errors import UsageError
from livtrain.networks import NETWORKS, ResUNet, build_network

torch.set_num_threads(2)


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "expected"),
    [(1, 1, 9_498_260), (1, 2, 9_498_744), (3, 1, 9_499_188), (3, 2, 9_499_672), (3, 3, 9_500_156)],
)
def test_parameter_counts_are_the_published_ones(in_channels: int, out_channels: int, expected: int) -> None:
    network = ResUNet(in_channels, out_channels)
    assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize(("in_channels", "out_channels"), [(1, 1), (2, 3)])
def test_training_gives_full_size_maps_and_evaluation_one(name: str, in_channels: int, out_channels: int) -> None:
    network = build_network(name, in_channels, out_channels, 2)
    z, y, x = NETWORKS[name].multiple_zyx
    shape = (z, y, 2 * x)
    image = torch.rand(2, in_channels, *shape)
    maps = network.train()(image)
    maps = (maps,) if isinstance(maps, torch.Tensor) else maps
    assert len(maps) == len(NETWORKS[name].map_weights)
    assert {tuple(m.shape) for m in maps} == {(2, out_channels, *shape)}
    with torch.no_grad():
        assert network.eval()(image).shape == (2, out_channels, *shape)


def test_every_level_adds_its_own_input() -> None:
    network = ResUNet(1, 1, width=4).eval()
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _, args, out, name=name: seen.__setitem__(name, (args[0], out)))
    with torch.no_grad():
        network(torch.rand(1, 1, 8, 16, 16))
    given = {name: entry[0] for name, entry in seen.items()}
    out = {name: entry[1] for name, entry in seen.items()}
    assert torch.equal(given["down1"], out["enc1"] + given["enc1"])  # one channel, broadcast over `width`
    for level, below in ((2, "down1"), (3, "down2"), (4, "down3")):
        follower = "widen" if level == 4 else f"down{level}"
        assert torch.equal(given[follower], out[f"enc{level}"] + out[below])
    assert torch.equal(given["dec1"], given["widen"])
    assert torch.equal(given["up2"], out["dec1"] + out["widen"])
    for k, (decoder, up, skip) in enumerate(
        (("dec2", "up2", "down3"), ("dec3", "up3", "down2"), ("dec4", "up4", "down1"))
    ):
        assert torch.equal(given[decoder], torch.cat([out[up], given[skip]], dim=1))
        assert torch.equal(given["map4" if k == 2 else f"up{k + 3}"], out[decoder] + out[up])


def test_the_projection_of_several_channels_has_a_bias() -> None:
    project = ResUNet(3, 1, width=4).project
    assert isinstance(project, nn.Conv3d)
    assert (project.kernel_size, project.bias is not None) == ((1, 1, 1), True)


def test_convolutions_and_activations_are_as_published() -> None:
    dilations = {
        name: [m.dilation[0] for m in getattr(ResUNet(width=4), name) if isinstance(m, nn.Conv3d)]
        for name in ("enc1", "enc2", "enc3", "enc4", "widen", "dec1", "dec2", "dec3", "dec4")
    }
    assert dilations == {
        "enc1": [1, 1], "enc2": [1, 1, 1], "enc3": [1, 2, 4], "enc4": [3, 4, 5], "widen": [1],
        "dec1": [1, 1, 1], "dec2": [1, 1, 1], "dec3": [1, 1, 1], "dec4": [1, 1],
    }  # fmt: skip
    plain = build_network("resunet_plain", 1, 1, 4)
    assert {m.dilation for m in plain.modules() if isinstance(m, nn.Conv3d)} == {(1, 1, 1)}
    for network in (ResUNet(width=4), plain):
        kinds = {type(m) for m in network.modules()} - {ResUNet, nn.Sequential}
        assert kinds == {nn.Conv3d, nn.ConvTranspose3d, nn.PReLU, nn.Identity}  # no normalization anywhere
        activations = [m for m in network.modules() if isinstance(m, nn.PReLU)]
        assert all(m.num_parameters > 1 and m.weight.unique().item() == 0.25 for m in activations)


def test_width_scales_every_channel_count() -> None:
    def counts(width: int) -> list[int]:
        return [m.out_channels for m in ResUNet(width=width).modules() if isinstance(m, nn.Conv3d)][:-4]

    assert [4 * n for n in counts(4)] == counts(16)


def test_weights_start_he_normal_and_biases_zero() -> None:
    torch.manual_seed(0)
    network = ResUNet()
    conv = network.dec1[2]  # 256 -> 256: many samples
    expected = math.sqrt(2 / (1 + 0.25**2)) / math.sqrt(256 * 27)
    assert conv.weight.std().item() == pytest.approx(expected, rel=0.01)
    assert conv.weight.mean().item() == pytest.approx(0, abs=expected / 100)
    assert all(not m.bias.any() for m in network.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d))


def test_dropout_acts_in_training_only_and_on_single_activations() -> None:
    network = ResUNet(width=4)
    x = torch.rand(1, 1, 16, 16, 16)
    seen: list[torch.Tensor] = []
    network.down2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    torch.manual_seed(0)
    first, second = network.train()(x)[3], network(x)[3]
    assert not torch.equal(first, second)
    zeros = (seen[0] == 0).float().mean(dim=(0, 2, 3, 4))
    assert zeros.mean().item() == pytest.approx(0.3, abs=0.03)
    assert zeros.max() < 0.5  # no whole channel
    with torch.no_grad():
        assert torch.equal(network.eval()(x), network(x))


def test_gradients_reach_every_parameter() -> None:
    network = ResUNet(2, 1, width=4).train()
    sum(m.mean() for m in network(torch.rand(1, 2, 16, 16, 16))).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 12, 16, 16), r"\(12, 16, 16\) voxels.*multiple of 8"),
        ((1, 2, 16, 16, 16), r"expected \(batch, 1, z, y, x\)"),
        ((1, 16, 16, 16), r"expected \(batch, 1, z, y, x\)"),
    ],
)
def test_unusable_inputs_are_named(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        ResUNet(width=4)(torch.zeros(shape))
    assert caught.value.code == "CONFIG_INVALID"


def test_unknown_names_and_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="network 'unet': expected one of multiclass_unet2d, resenc"):
        build_network("unet", 1, 1, 16)
    with pytest.raises(UsageError, match="expected positive counts and a dropout"):
        ResUNet(width=0)
    with pytest.raises(UsageError, match="dropout 1"):
        ResUNet(dropout=1.0)
