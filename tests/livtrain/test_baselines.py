"""The baselines: counts by hand, forward passes against independent code, slices, learned windows, recomputing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from livprep.errors import UsageError
from livprep.windows import Window, WindowBank
from livtrain.config import resolve
from livtrain.inference import sliding_window
from livtrain.networks import NETWORKS, LearnedWindows, ResUNet, WindowedNetwork, build_network, resnet34
from livtrain.networks.resenc import ResEncUNet
from livtrain.networks.slices import Slices


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the volumes are tiny
    yield
    torch.set_num_threads(threads)


COUNTS = {
    ("resunet", 1, 1): 9_498_260,
    ("resunet_plain", 1, 1): 9_498_260,
    ("resunet_plain", 3, 3): 9_500_156,
    ("unet2d", 1, 1): 7_776_961,
    ("multiclass_unet2d", 3, 3): 1_941_139,
    ("resnet34_unet2d", 3, 1): 24_436_369,  # segmentation_models_pytorch's Unet("resnet34") says the same
    ("resenc", 1, 1): 102_348_965,  # dynamic_network_architectures 0.4.4 says the same
}


@pytest.mark.parametrize(("name", "in_channels", "out_channels"), COUNTS)
def test_parameter_counts(name: str, in_channels: int, out_channels: int) -> None:
    with torch.device("meta"):
        network = build_network(name, in_channels, out_channels, 16)
    assert sum(p.numel() for p in network.parameters()) == COUNTS[name, in_channels, out_channels]


def _conv(source: int, out: int, kernel: int, *, bias: bool = True) -> int:
    return source * out * kernel + bias * out


def test_the_counts_follow_from_the_tables_by_hand() -> None:
    double = lambda a, b: _conv(a, b, 9) + _conv(b, b, 9)  # noqa: E731
    down = [double(a, b) for a, b in ((1, 32), (32, 64), (64, 128), (128, 256), (256, 512))]
    up = [_conv(a, b, 4) for a, b in ((512, 256), (256, 128), (128, 64), (64, 64))]
    join = [double(a, b) for a, b in ((512, 256), (256, 128), (128, 64), (96, 32))]
    assert sum(down + up + join) + _conv(32, 1, 1) == COUNTS["unet2d", 1, 1]

    down = [double(a, b) for a, b in ((3, 16), (16, 32), (32, 64), (64, 128), (128, 256))]
    up = [_conv(2 * a, a, 4) for a in (128, 64, 32, 16)]
    join = [double(2 * a, a) for a in (128, 64, 32, 16)]
    assert sum(down + up + join) + _conv(16, 3, 1) == COUNTS["multiclass_unet2d", 3, 3]

    unit = lambda a, b, k: _conv(a, b, k, bias=False) + 2 * b  # noqa: E731 - convolution and norm
    encoder = unit(3, 64, 49)
    for source, out, blocks in ((64, 64, 3), (64, 128, 4), (128, 256, 6), (256, 512, 3)):
        encoder += unit(source, out, 9) + (2 * blocks - 1) * unit(out, out, 9) + (source != out) * unit(source, out, 1)
    assert encoder == 21_284_672  # torchvision's 21,797,672 without its last layer
    joins = ((768, 256), (384, 128), (192, 64), (128, 32), (32, 16))
    decoder = sum(unit(a, b, 9) + unit(b, b, 9) for a, b in joins)
    assert encoder + decoder + _conv(16, 1, 9) == COUNTS["resnet34_unet2d", 3, 1]

    features, blocks = (32, 64, 128, 256, 320, 320), (1, 3, 4, 6, 6, 6)
    total = unit(1, 32, 27) + 32
    for source, out, count in zip((32, *features), features, blocks, strict=False):
        total += (unit(source, out, 27) + out) + (2 * count - 1) * (unit(out, out, 27) + out)
        total += (source != out) * unit(source, out, 1)
    for below, out in zip(features[:0:-1], features[-2::-1], strict=True):
        total += _conv(below, out, 8) + unit(2 * out, out, 27) + out + _conv(out, 1, 1)
    assert total == COUNTS["resenc", 1, 1]


def _wave(*shape: int, step: float = 0.37) -> Tensor:
    """Numbers that need no generator: the same on every machine."""
    count = int(np.prod(shape))
    return torch.sin(torch.arange(count, dtype=torch.float64) * step).reshape(shape)


def _fill(parameters: Iterable[nn.Parameter]) -> None:
    """Weights that need no generator, sized so that nothing explodes."""
    with torch.no_grad():
        for k, p in enumerate(parameters):
            wave = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * 0.7 + k).reshape(p.shape)
            p.copy_(wave / p[0].numel() ** 0.5 if p.ndim > 1 else 1 + 0.1 * wave)


def _resunet(x: Tensor, parameters: Iterator[Tensor], dilated: bool) -> list[Tensor]:
    """The table of method.md, section 2, once more: functions alone, weights in the table's order."""

    def step(y: Tensor, dilation: int = 1) -> Tensor:
        w, b, a = next(parameters), next(parameters), next(parameters)
        return F.prelu(F.conv3d(y, w, b, padding=dilation, dilation=dilation), a)

    def block(y: Tensor, *dilations: int) -> Tensor:
        for dilation in dilations:
            y = step(y, dilation)
        return y

    def move(y: Tensor, function: object) -> Tensor:
        w, b, a = next(parameters), next(parameters), next(parameters)
        return F.prelu(function(y, w, b, stride=2), a)  # type: ignore[operator]

    middle, deep = ((1, 2, 4), (3, 4, 5)) if dilated else ((1, 1, 1), (1, 1, 1))
    project = F.conv3d(x, next(parameters), next(parameters)) if x.shape[1] > 1 else x
    l1 = block(x, 1, 1) + project
    s1 = move(l1, F.conv3d)
    l2 = block(s1, 1, 1, 1) + s1
    s2 = move(l2, F.conv3d)
    l3 = block(s2, *middle) + s2
    s3 = move(l3, F.conv3d)
    l4 = block(s3, *deep) + s3
    s4 = step(l4)
    levels = [block(l4, 1, 1, 1) + s4]
    for skip, count in ((l3, 3), (l2, 3), (l1, 2)):
        u = move(levels[-1], F.conv_transpose3d)
        levels.append(block(torch.cat([u, skip], dim=1), *(1,) * count) + u)
    maps = [F.conv3d(y, next(parameters), next(parameters)) for y in levels]
    return [F.interpolate(m, size=x.shape[2:], mode="trilinear") for m in maps]


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("dilated", [True, False])
def test_the_resunet_equals_a_second_implementation(dilated: bool, in_channels: int) -> None:
    network = ResUNet(in_channels, 2, width=4, dilated=dilated, dropout=0.0).double()
    _fill(network.parameters())
    x = _wave(1, in_channels, 16, 16, 24)
    with torch.no_grad():
        expected = _resunet(x, iter(list(network.parameters())), dilated)
        got = network.train()(x)
        assert torch.equal(network.eval()(x), got[3])
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)
        assert 0.01 < ours.std() < 100


@pytest.mark.parametrize("name", ["unet2d", "multiclass_unet2d"])
def test_the_2d_unets_equal_a_second_implementation(name: str) -> None:
    network = build_network(name, 3, 2, 4).double().eval()
    _fill(network.parameters())
    inner = network.network
    assert isinstance(inner, nn.Module)
    down, up, join = (iter(list(getattr(inner, part).parameters())) for part in ("down", "up", "join"))

    def two(y: Tensor, weights: Iterator[Tensor]) -> Tensor:
        for _ in range(2):
            y = F.relu(F.conv2d(y, next(weights), next(weights), padding=1))
        return y

    x = _wave(2, 3, 3, 32, 48)
    y, skips = x.transpose(1, 2).flatten(0, 1), []
    for level in range(5):
        y = two(F.max_pool2d(y, 2) if level else y, down)
        skips.append(y)
    for skip in skips[-2::-1]:
        y = two(torch.cat([F.conv_transpose2d(y, next(up), next(up), stride=2), skip], dim=1), join)
    expected = F.conv2d(y, inner.map.weight, inner.map.bias)  # type: ignore[union-attr]
    with torch.no_grad():
        got = network(x)
    assert got.shape == (2, 2, 3, 32, 48)
    assert torch.allclose(got.transpose(1, 2).flatten(0, 1), expected, rtol=1e-10, atol=1e-10)


def test_the_resnet34_encoder_equals_monais() -> None:
    from monai.networks.nets import resnet34 as monai_resnet34

    theirs = monai_resnet34(spatial_dims=2, n_input_channels=3, conv1_t_stride=2, bias_downsample=False).eval()
    ours = resnet34.ResNet34(3).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    expected: list[Tensor] = []
    for level in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        level.register_forward_hook(lambda _, args, out: expected.append(out))
    x = _wave(2, 3, 64, 96).float()
    with torch.no_grad():
        theirs((x - 0.449) / 0.226)
        got = ours(x)
    assert [tuple(f.shape[1:]) for f in got] == [(64, 32, 48), (64, 16, 24), (128, 8, 12), (256, 4, 6), (512, 2, 3)]
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(got[1:], expected, strict=True))


def test_resenc_equals_nnunets_network() -> None:
    """Numbers from dynamic_network_architectures 0.4.4's `ResidualEncoderUNet` with these weights (float64)."""
    network = ResEncUNet(1, 2, (4, 8, 16, 32, 40, 40)).double()
    blocks = [block for level in network.encoder for block in level]  # type: ignore[union-attr]
    modules = [network.stem, *blocks, *network.decoder, *network.up, *network.maps]
    _fill(chain.from_iterable(module.parameters() for module in modules))
    x = _wave(1, 1, 32, 32, 64)
    with torch.no_grad():
        y, maps = network.eval()(x), network.train()(x)
    expected = [
        -0.8183000133646138, -0.5337816885585158, -0.5036202910482853, 0.29982050180182535,
        -0.7984931939403819, -0.5424414583041249, -0.2585174604409332, 0.4703222251539166,
    ]  # fmt: skip
    assert y[0, :, ::16, ::16, ::32].flatten()[:8].tolist() == pytest.approx(expected, rel=1e-8)
    assert (y.mean().item(), y.std().item()) == pytest.approx((1.087399251256468, 1.4269511231001588), rel=1e-8)
    assert torch.equal(maps[-1], y)
    assert {m.shape for m in maps} == {y.shape}
    assert len(maps) == len(NETWORKS["resenc"].map_weights)
    assert sum(NETWORKS["resenc"].map_weights) == pytest.approx(1)


def test_resenc_starts_as_its_skips_and_never_trains_the_coarsest_map() -> None:
    network = build_network("resenc", 1, 1, 2).train()
    sum(m.mean() for m in network(torch.rand(1, 1, 32, 32, 64))).backward()
    without = {name for name, p in network.named_parameters() if p.grad is None}
    assert without == {"maps.0.weight", "maps.0.bias"}
    assert all(not m.second[1].weight.any() for m in network.modules() if hasattr(m, "second"))
    with pytest.raises(UsageError, match="expected more than 32 along one axis"):
        network(torch.rand(1, 1, 32, 32, 32))


def test_resnet34_pretrained_weights_are_used_or_missed_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    source = resnet34.ResNet34(3)
    monkeypatch.setattr(resnet34, "fetch_imagenet", lambda: {**source.state_dict(), "fc.weight": torch.zeros(1)})
    network = build_network("resnet34_unet2d", 2, 1, 16, pretrained=True)
    assert torch.equal(network.network.encoder.layer4[2].conv2.weight, source.layer4[2].conv2.weight)  # type: ignore[union-attr,index]
    gray = _wave(1, 1, 32, 32).float()
    with torch.no_grad():  # two equal channels act as three equal colors
        ours = network.network.encoder.eval()(gray.expand(-1, 2, -1, -1))  # type: ignore[union-attr,operator]
        theirs = source.eval()(gray.expand(-1, 3, -1, -1))
    assert torch.allclose(ours[4], theirs[4], rtol=1e-4, atol=1e-4)

    def unreachable() -> dict[str, Tensor]:
        raise URLError("no route")

    monkeypatch.setattr(resnet34, "fetch_imagenet", unreachable)
    with pytest.warns(RuntimeWarning, match=r"could not be had \(.*no route.*\): it starts at random"):
        build_network("resnet34_unet2d", 1, 1, 16, pretrained=True)
    with pytest.warns(RuntimeWarning, match="no ImageNet weights for a ResNet34 of width 8"):
        build_network("resnet34_unet2d", 1, 1, 2, pretrained=True)


def test_a_failed_download_is_a_failure_that_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, **_: object) -> None:
        raise URLError(url)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with pytest.raises(URLError, match="resnet34-b627a593"):
        resnet34.fetch_imagenet()


@pytest.mark.parametrize("name", [name for name, entry in NETWORKS.items() if entry.dims == 2])
def test_2d_networks_take_slices_and_whole_volumes(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(name, 2, 3, 2).eval()
    multiple = NETWORKS[name].multiple_zyx[2]
    x = torch.rand(2, 2, 3, multiple, 2 * multiple)
    with torch.no_grad():
        whole = network(x)
        one = network(x[:, :, 1:2])
    assert one.shape == (2, 3, 1, multiple, 2 * multiple)
    assert torch.allclose(whole[:, :, 1:2], one, atol=1e-5)  # a slice knows nothing of its neighbors
    volume = (x[0].numpy() * 255).astype(np.uint8)
    got = sliding_window(network, volume, (1, multiple, 2 * multiple), batch=2, tta=True)
    assert got.shape == (3, 3, multiple, 2 * multiple)
    plain = sliding_window(network, volume, (1, multiple, 2 * multiple))
    with torch.no_grad():
        expected = torch.softmax(network(torch.from_numpy(volume)[None].float() / 255), dim=1)[0]
    assert np.allclose(plain, expected.numpy(), atol=1e-5)
    assert network.train()(x[:, :, :1]).shape == (2, 3, 1, multiple, 2 * multiple)
    with pytest.raises(UsageError, match=f"multiple of 1, {multiple}, {multiple}"):
        network(torch.rand(1, 2, 1, multiple + 1, multiple))
    with pytest.raises(UsageError, match=r"expected \(batch, 2, z, y, x\)"):
        network(torch.rand(1, 3, 1, multiple, multiple))


@pytest.mark.parametrize(("name", "patch"), [("resunet", (16, 16, 16)), ("resenc", (32, 32, 64))])
def test_recomputing_activations_changes_no_gradient(name: str, patch: tuple[int, int, int]) -> None:
    gradients = []
    saved = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = build_network(name, 1, 1, 2, recompute=recompute).train()
        x = torch.rand(1, 1, *patch)
        sizes: dict[int, int] = {}

        def keep(t: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            maps = network(x)
        saved.append(sum(sizes.values()))
        sum(m.square().mean() for m in maps).backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))  # dropout drawn again alike
    assert saved[1] < 0.7 * saved[0]


def test_every_network_names_a_preset_that_builds_it() -> None:
    for name, entry in NETWORKS.items():
        settings = resolve(preset=entry.preset)
        assert settings.network == name
        assert not any(size % multiple for size, multiple in zip(settings.patch_zyx, entry.multiple_zyx, strict=True))


def test_options_that_a_network_lacks_are_refused() -> None:
    with pytest.raises(UsageError, match="network unet2d has no dropout or recompute to set"):
        build_network("unet2d", 1, 1, 2, dropout=0.1, recompute=True)
    with pytest.raises(UsageError, match="network resunet has no pretrained to set"):
        build_network("resunet", 1, 1, 2, pretrained=True)
    with pytest.raises(UsageError, match="network unet2d: found in_channels 0"):
        build_network("unet2d", 0, 1, 2)
    half = build_network("multiclass_unet2d", 1, 1, 2, dropout=0.5)
    assert {m.p for m in half.modules() if isinstance(m, nn.Dropout)} == {0.5}
    own = [m.p for m in build_network("multiclass_unet2d", 1, 1, 2).modules() if isinstance(m, nn.Dropout)]
    assert own == [0.1, 0.1, 0.2, 0.2, 0.3, 0.2, 0.2, 0.1, 0.1]


BANK = WindowBank((Window(40, 220), Window(60, 140), Window(-600, 1500)))


def test_learned_windows_start_as_the_fixed_ones_without_rounding() -> None:
    hu = torch.arange(-1100, 1300, dtype=torch.int16).reshape(1, 1, 2, 30, 40)
    got = LearnedWindows(BANK)(hu)
    fixed = BANK.apply(hu[0, 0].numpy())
    for channel, window in enumerate(BANK):
        exact = np.clip((hu[0, 0].numpy() - window.low_hu) / window.width_hu, 0, 1)
        assert got[0, channel].detach().numpy() == pytest.approx(exact, abs=2e-6)
        assert np.abs(got[0, channel].detach().numpy() - fixed[channel] / 255).max() <= 0.5 / 255 + 2e-6


@pytest.mark.parametrize("softness", [0.0, 0.3, 1.0])
def test_learned_windows_have_the_gradients_of_their_formula(softness: float) -> None:
    windows = LearnedWindows(BANK, softness).double()
    hu = (400 * _wave(1, 1, 2, 3, 5)).requires_grad_()  # no point within 1e-3 HU of an end of a window
    assert torch.autograd.gradcheck(windows, hu)
    assert torch.autograd.gradcheck(
        lambda center, width: torch.func.functional_call(windows, {"center": center, "width": width}, hu.detach()),
        (windows.center, windows.width),
    )
    inside = LearnedWindows(WindowBank((Window(40, 220),)), softness)
    inside(torch.full((1, 1, 1, 1, 1), 95.0)).sum().backward()
    assert inside.center.grad is not None
    assert inside.center.grad.item() < 0  # a higher center darkens
    outside = LearnedWindows(WindowBank((Window(40, 220),)), softness)
    outside(torch.full((1, 1, 1, 1, 1), 400.0)).sum().backward()
    assert outside.center.grad is not None
    assert (outside.center.grad.item() == 0) == (softness == 0)


def test_learned_windows_learn_and_stay_positive() -> None:
    windows = LearnedWindows(WindowBank((Window(0, 400),)))
    target = LearnedWindows(WindowBank((Window(60, 200),)))
    hu = torch.linspace(-300, 300, 1000).reshape(1, 1, 10, 10, 10)
    optimizer = torch.optim.Adam(windows.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        (windows(hu) - target(hu)).square().mean().backward()
        optimizer.step()
    assert windows.center_hu.item() == pytest.approx(60, abs=5)
    assert windows.width_hu.item() == pytest.approx(200, abs=10)
    with torch.no_grad():
        windows.width.fill_(-100)
    assert windows.width_hu.item() >= 1
    assert windows(hu).isfinite().all()


def test_learned_windows_in_front_of_a_network() -> None:
    network = WindowedNetwork(LearnedWindows(BANK, 0.2), build_network("resunet", 3, 1, 2))
    maps = network.train()(1024 + torch.linspace(-200, 300, 8**3).reshape(1, 1, 8, 8, 8))
    sum(m.square().mean() for m in maps).backward()
    assert network.windows.center.grad is not None
    assert network.windows.center.grad.abs().min() > 0
    assert not isinstance(network.eval()(torch.zeros(1, 1, 8, 8, 8)), tuple)


def test_faulty_learned_windows_are_refused() -> None:
    for bank, softness in ((WindowBank(()), 0.0), (BANK, 1.5), (WindowBank((Window(0, 1),)), 0.0)):
        with pytest.raises(UsageError, match="learned windows: widths"):
            LearnedWindows(bank, softness)
    with pytest.raises(UsageError, match=r"input \(1, 2, 4, 4, 4\), expected \(B, 1, z, y, x\)"):
        LearnedWindows(BANK)(torch.zeros(1, 2, 4, 4, 4))


def test_slices_are_a_plain_wrapper() -> None:
    inner = nn.Conv2d(2, 3, 3, padding=1)
    x = torch.rand(2, 2, 4, 6, 8)
    assert torch.allclose(Slices(inner, 2, 2)(x)[1, :, 3], inner(x[1:, :, 3])[0], atol=1e-6)
