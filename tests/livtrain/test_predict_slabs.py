"""Prediction slab by slab: equal to the whole, within memory, and going on where memory runs out."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from livprep.errors import SourceError
from livprep.formats.nifti import write_nifti
from livprep.geometry import Geometry
from livprep.prepare import Preparation, restore, restore_slabs
from livtrain.checkpoint import Checkpoint
from livtrain.config import Settings, WindowSetting
from livtrain.inference import sliding_window
from livtrain.inference.inputs import between, mean_slabs
from livtrain.inference.memory import PatchBatch, is_out_of_memory
from livtrain.inference.window import Clock, Slab, WindowSettings, window_slabs
from livtrain.networks import build_network
from livtrain.stages import get_stage

torch.set_num_threads(2)
OVERFLOWS = [
    MemoryError("no more"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"),
]


class Neighborhood(nn.Module):
    """A fixed random convolution, so that a voxel's result depends on its patch; may run out of memory."""

    def __init__(self, channels: int = 1, classes: int = 1, most: int = 99, error: Exception | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv3d(channels, classes, 5, padding=2)
        self.most, self.error, self.sizes = most, error, []

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        self.sizes.append(len(x_BCZYX))
        if len(x_BCZYX) > self.most:
            assert self.error is not None
            raise self.error
        values: Tensor = self.conv(x_BCZYX)
        return values


# --- slabs -----------------------------------------------------------------------------------------------------


def test_slabs_follow_one_another_and_hold_little() -> None:
    image = np.random.default_rng(0).integers(1, 256, (2, 40, 24, 20), dtype=np.uint8)
    clock = Clock()
    settings = WindowSettings((8, 16, 16), 0.5, clock=clock)
    network = Neighborhood(2, 3).eval()
    slabs = list(window_slabs(network, image, settings))
    starts = [start for start, _ in slabs]
    assert starts == list(np.cumsum([0, *(values.shape[1] for _, values in slabs[:-1])]))
    assert max(values.shape[1] for _, values in slabs) <= 8
    whole = np.concatenate([values for _, values in slabs], axis=1)
    assert whole.shape == (3, 40, 24, 20)
    assert np.array_equal(whole, sliding_window(network, image, (8, 16, 16), 0.5))
    assert clock.patches == len(network.sizes) / 2
    assert clock.network_s > 0


def _cut(values: np.ndarray, pieces: list[int]) -> Iterator[Slab]:
    ends = sorted({*(piece % (values.shape[1] + 1) for piece in pieces), 0, values.shape[1]})
    for first, last in itertools.pairwise(ends):
        yield first, values[:, first:last]


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(1, 6)),
    spacing=st.tuples(*[st.sampled_from((0.5, 0.8, 1.0, 1.7, 4.0))] * 3),
    pieces=st.lists(st.integers(0, 12), max_size=4),
)
def test_the_way_back_does_not_depend_on_the_slabs(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], pieces: list[int]
) -> None:
    source = Geometry(shape, (1.0, 1.0, 1.0))
    prepared = Preparation(spacing_mm=spacing).grid(source)
    values = np.random.default_rng(sum(shape)).random((2, *prepared.shape_zyx), dtype=np.float32)
    slabs = list(restore_slabs(_cut(values, pieces), prepared, source))
    assert [start for start, _ in slabs] == list(np.cumsum([0, *(part.shape[1] for _, part in slabs[:-1])]))
    assert np.array_equal(np.concatenate([part for _, part in slabs], axis=1), restore(values, prepared, source))


@given(st.integers(0, 99), st.lists(st.lists(st.integers(0, 12), max_size=4), min_size=1, max_size=3))
def test_the_mean_of_volumes_does_not_depend_on_their_slabs(seed: int, cuts: list[list[int]]) -> None:
    volumes = np.random.default_rng(seed).random((len(cuts), 1, 9, 2, 2), dtype=np.float32)
    found = list(mean_slabs([_cut(volume, cut) for volume, cut in zip(volumes, cuts, strict=True)]))
    assert np.concatenate([part for _, part in found], axis=1) == pytest.approx(volumes.mean(axis=0), abs=1e-6)


def test_slices_without_values_are_zero() -> None:
    slabs = list(between([(3, np.ones((1, 2, 4, 4), dtype=np.float32))], (70, 4, 4)))
    whole = np.concatenate([part for _, part in slabs], axis=1)
    assert whole.shape == (1, 70, 4, 4)
    assert np.array_equal(np.flatnonzero(whole[0, :, 0, 0]), [3, 4])
    assert max(part.shape[1] for _, part in slabs) <= 32


# --- beside MONAI ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24, 32, 48), (5, 32, 9), (8, 16, 16)])
@pytest.mark.parametrize("classes", [1, 3])
def test_the_window_equals_monais_with_the_same_settings(shape: tuple[int, int, int], classes: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.inferers import sliding_window_inference

    network, image = Neighborhood(2, classes).eval(), torch.rand(2, *shape)
    activate = torch.sigmoid if classes == 1 else lambda logits: torch.softmax(logits, dim=1)
    for sigma in (0.5, 0.125):
        with torch.no_grad():
            theirs = sliding_window_inference(
                image[None], (8, 16, 16), 2, lambda x: activate(network(x)), 0.5, mode="gaussian", sigma_scale=sigma
            )[0].numpy()
        ours = sliding_window(network, image, (8, 16, 16), 0.5, sigma_scale=sigma)
        if sigma == 0.5:
            assert ours == pytest.approx(theirs, abs=1e-6)
        else:  # MONAI lifts weights below 1e-3 to that, which counts where all of them are small
            assert np.abs(ours - theirs).mean() < 5e-3


def test_bfloat16_comes_near_to_float32() -> None:
    network, image = Neighborhood(1, 1).eval(), torch.rand(1, 12, 20, 20)
    exact, rounded = (sliding_window(network, image, (8, 16, 16), amp=amp) for amp in (False, True))
    assert not np.array_equal(exact, rounded)
    assert rounded == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("where", ["cpu", "device", "auto"])
def test_sums_may_lie_anywhere(where: str) -> None:
    network, image = Neighborhood(1, 1).eval(), torch.rand(1, 12, 20, 20)
    settings = WindowSettings((8, 16, 16), accumulate=where)
    found = np.concatenate([part for _, part in window_slabs(network, image, settings)], axis=1)
    assert np.array_equal(found, sliding_window(network, image, (8, 16, 16)))


# --- memory ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", OVERFLOWS)
def test_the_batch_shrinks_where_memory_runs_out(error: Exception) -> None:
    image = torch.rand(1, 8, 48, 64)
    network = Neighborhood(most=2, error=error).eval()
    found = sliding_window(network, image, (8, 16, 16), 0.5, batch=8)
    assert network.sizes[:3] == [8, 4, 2]
    assert set(network.sizes[3:-1]) == {2}
    assert found == pytest.approx(sliding_window(Neighborhood().eval(), image, (8, 16, 16), 0.5), abs=1e-6)


@pytest.mark.parametrize("error", OVERFLOWS)
def test_a_patch_that_never_fits_is_named(error: Exception) -> None:
    with pytest.raises(SourceError, match=r"one patch does not fit into the memory of cpu .* smaller patch") as caught:
        sliding_window(Neighborhood(most=0, error=error), torch.rand(1, 8, 16, 16), (8, 16, 16), batch=4)
    assert caught.value.code == "CASE_TOO_LARGE"


def test_other_faults_of_a_network_are_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="sizes differ"):
        sliding_window(Neighborhood(most=0, error=RuntimeError("sizes differ")), torch.rand(1, 8, 16, 16), (8, 16, 16))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_as_many_patches_as_fit_are_found_on_the_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    one_bytes = 4 * 8 * 16 * 16  # the convolution's output
    monkeypatch.setattr("livtrain.inference.memory.free_bytes", lambda device: 2 * 5 * one_bytes)
    network = Neighborhood().eval()
    list(window_slabs(network, torch.rand(1, 8, 48, 64), WindowSettings((8, 16, 16), 0.5, batch=None)))
    assert network.sizes == [1, 5, 5, 5, 5, 5, 5, 4]
    few = PatchBatch(network, torch.device("cpu"), None, limit=3)
    few.run([torch.rand(1, 8, 16, 16)] * 7, lambda chunk: network(torch.stack(list(chunk))), lambda chunk, result: None)
    assert few.size == 3
    monkeypatch.setattr("livtrain.inference.memory.MOST_BYTES", 2 * one_bytes)
    small = Neighborhood().eval()
    list(window_slabs(small, torch.rand(1, 8, 48, 64), WindowSettings((8, 16, 16), 0.5, batch=None)))
    assert max(small.sizes) == 2


def _write_run(folder: Path, stage: str, width: int = 4, overlap: float = 0.25) -> Path:
    """A run of the CPU preset's network that calls every voxel foreground: the most that post-processing can meet."""
    settings = Settings(
        stage=stage, preset="fast-cpu", width=width, windows=(WindowSetting(name="wide", wl=0.0, ww=400.0),),
        patch_zyx=(32, 64, 64), overlap=overlap,
    )  # fmt: skip
    torch.manual_seed(0)
    network = build_network(settings.network, 1, get_stage(stage).out_channels, settings.width)
    state = network.state_dict()
    for name in state:
        if name.endswith("bias") and len(state[name]) == 1:
            state[name] = torch.full_like(state[name], 30.0)
    folder.mkdir(parents=True)
    Checkpoint(state, settings, Preparation().as_dict(), step=1).save(folder / "best.pt")
    return folder


def _write_tall(path: Path, shape: tuple[int, int, int]) -> Path:
    """A body of noise in air."""
    rng = np.random.default_rng(0)
    plane = rng.integers(-150, 250, shape[1:], dtype=np.int16)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[1:]), indexing="ij")
    plane[x**2 + (y * 1.4) ** 2 > 0.9] = -1000
    write_nifti(path, np.broadcast_to(plane, shape), Geometry(shape, (1.0, 0.7, 0.7)))
    return path


def _measured(path: Path, liver: Path, tumor: Path) -> dict[str, float]:
    """What the command says of one prediction in a process of its own."""
    script = "import sys; from livcli.livtrain_main import main; sys.argv[0] = 'livtrain'; main()"
    line = [sys.executable, "-c", script, "bench", "predict", path, "--liver", liver, "--tumor", tumor]
    done = subprocess.run(
        [*map(str, line), "--device", "cpu", "--json", "-q"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_memory_grows_by_few_bytes_a_voxel(tmp_path: Path) -> None:
    """6 GiB for 512 x 512 x 600 voxels are 40 bytes each; what grows with the scan is held to less than half."""
    runs = [_write_run(tmp_path / stage, stage, width=2, overlap=0.0) for stage in ("liver", "tumor")]
    small, large = (64, 128, 128), (160, 192, 192)
    found = [_measured(_write_tall(tmp_path / f"{shape[0]}.nii", shape), *runs) for shape in (small, large)]
    voxels = [np.prod(shape) for shape in (small, large)]
    growth = (found[1]["peak_memory_bytes"] - found[0]["peak_memory_bytes"]) / (voxels[1] - voxels[0])
    assert growth < 20
    assert 0 < found[1]["network_share"] < 1


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("slices", "most_gib"), [(600, 6.0), (1000, 8.0)])
def test_large_scans_stay_within_memory(tmp_path: Path, slices: int, most_gib: float) -> None:
    runs = _write_run(tmp_path / "liver", "liver"), _write_run(tmp_path / "tumor", "tumor")
    found = _measured(_write_tall(tmp_path / "tall.nii", (slices, 512, 512)), *runs)
    print(json.dumps(found))
    assert found["peak_memory_bytes"] < most_gib * 2**30
