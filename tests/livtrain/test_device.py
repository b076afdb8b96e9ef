"""What a GPU would meet, held without one: torch's meta device computes shapes, types and devices alone.

A tensor on it refuses to be read by the host, and a dispatch mode sees every copy from the host to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fake_store import fake_store
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from livprep.errors import RunError
from livtrain import augment
from livtrain.config import resolve
from livtrain.loader import PatchRequest, measuring, tiers
from livtrain.loader.slots import SlotPool
from livtrain.losses import build_loss
from livtrain.networks import build_network
from livtrain.trainer import fit, loop, plan
from livtrain.trainer.measuring import measure_steps
from livtrain.trainer.memory import MAX_BATCH
from livtrain.trainer.optimization import Precision, compiled
from livtrain.trainer.plan import make_plan
from livtrain.trainer.run import Run
from livtrain.trainer.waiting import DataWait

META = torch.device("meta")
SMALL = ("patch_zyx=[8,16,16]", "width=2", "batch=2", "steps=4", "validate_every=0", "train_dice_cases=0")
EVERYTHING = (
    "augment={preset: nnunet, rotation: 1, elastic: 1, window: 0.5, noise: 0, blur: 0.5, contrast: 1, gamma: 1, "
    "low_resolution: 1, in_plane_ratio: null}"
)
"""All but noise, whose generator needs a device that has one."""


class Copies(TorchDispatchMode):
    """Notes copies from the host to another device, and whether the host waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, Tensor)}
        if "copy" in str(func) and len(devices) > 1:
            self.waiting.append(not (kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True)))
        return found


def _run_on_meta(stage: str, sets: Sequence[str]) -> tuple[Run, Any]:
    """A run, and what gives its batch k, both on the meta device; the cohort lies there too."""
    settings = resolve(preset="fast-cpu", assignments=[*SMALL, *sets], options={"stage": stage, "device": "cpu"})
    made = make_plan(fake_store(), settings, lambda _: None)
    own = made.settings.model_copy(update={"device": "meta"})
    run = Run(dataclasses.replace(made, settings=own))
    run.precision = Precision("cpu", "none")  # the meta device has no autocast
    request = PatchRequest(
        made.cases, own.patch_zyx, own.batch, cases=made.train, windows=own.bank, stage=stage, deliver="packed",
        margin=run.augmenter.margin,
    )  # fmt: skip
    cases = request.open()
    filler = request.filler(cases, lambda dtype, *, sent: SlotPool(dtype))
    cohort = tiers.ResidentCohort(cases, META, 1)
    return run, lambda k: cohort.batch(filler, range(k * own.batch, (k + 1) * own.batch))


@pytest.mark.parametrize(
    ("stage", "sets"),
    [
        ("tumor", (EVERYTHING,)),
        ("liver", (EVERYTHING, "learn_windows=true")),
        ("multiclass", (EVERYTHING, "network=unet2d", "patch_zyx=[1,16,16]", "loss=wce", "class_weights=[0.4,7,14]")),
    ],
)
def test_a_step_reads_nothing_back_and_waits_for_no_copy(stage: str, sets: tuple[str, ...]) -> None:
    run, batch = _run_on_meta(stage, sets)
    run.train_step([batch(0)])  # tables of the windows are brought to the device once
    copies = Copies()
    with copies:
        loss = run.train_step([batch(1)])
    assert loss.device == META
    assert copies.waiting
    assert not any(copies.waiting)


def test_memory_is_estimated_for_learned_windows_too() -> None:
    settings = resolve(
        preset="fast-cpu", assignments=[*SMALL, "learn_windows=true", "batch_by_memory=true"], options={"device": "cpu"}
    )
    assert make_plan(fake_store(), settings, lambda _: None).settings.batch == MAX_BATCH


def test_what_goes_to_cuda_leaves_from_page_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Host:
        def pin_memory(self) -> Host:
            asked.append("pinned")
            return self

        def to(self, device: torch.device, non_blocking: bool) -> None:
            asked.append((device.type, non_blocking))

    monkeypatch.setattr(augment.moving.torch, "from_numpy", lambda _: Host())
    augment.moving.moved(None, torch.device("cuda", 0))  # type: ignore[arg-type]
    assert asked == ["pinned", ("cuda", True)]


def test_the_wait_of_a_gpu_is_the_gpus_and_not_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mark:
        """An event of a device that is idle for 2 ms between two of them."""

        made = 0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: Any) -> None:
            Mark.made += 1
            self.at = Mark.made

        def elapsed_time(self, other: Mark) -> float:
            assert other.at == self.at + 1
            return 2.0

    monkeypatch.setattr(torch.cuda, "Event", Mark)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    waits = DataWait(torch.device("cuda", 1))
    for _ in range(3):
        with waits.fetching():
            pass
    assert waits.taken_s() == pytest.approx(0.006)
    assert waits.taken_s() == 0
    host = DataWait(torch.device("cpu"))
    with host.fetching():
        pass
    assert 0 < host.taken_s() < 0.1
    assert host.taken_s() == 0


def test_a_measured_loader_waits_for_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    measuring._wait_for(torch.device("cpu"))
    measuring._wait_for(torch.device("cuda"))
    assert asked == [torch.device("cuda")]


def test_measured_steps_have_the_switches_of_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def step(run: Run, batches: Any) -> Tensor:
        seen.append(torch.backends.cudnn.benchmark)
        return torch.zeros(())

    monkeypatch.setattr(Run, "train_step", step)
    settings = resolve(preset="fast-cpu", assignments=[*SMALL], options={"device": "cpu"})
    assert measure_steps(fake_store(), settings, 3, lambda _: None).steps == 3
    assert seen == [True] * 5
    assert not torch.backends.cudnn.benchmark


def test_too_little_memory_is_told_with_what_helps(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(run: Run, batches: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")

    monkeypatch.setattr(loop.Run, "train_step", full)
    with pytest.raises(RunError, match=r"2 patches of 8x16x16 voxels .* of width 2 .*20\.00 GiB\.\); lower") as caught:
        fit(fake_store(), resolve(preset="fast-cpu", assignments=[*SMALL], options={"device": "cpu"}), tmp_path)
    assert (caught.value.code, caught.value.exit_code) == ("OUT_OF_MEMORY", 70)


def test_where_nothing_can_be_compiled_the_network_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def broken(x: Tensor) -> Tensor:
        raise BackendCompilerFailed("inductor", RuntimeError("Failed to find C compiler."), None)

    monkeypatch.setattr(torch, "compile", lambda network, dynamic: broken)
    network = nn.Linear(2, 2)
    forward, x = compiled(network), torch.ones(1, 2)
    with pytest.warns(RuntimeWarning, match=r"cannot be compiled here .*Failed to find C compiler.*compile=false"):
        first = forward(x)
    assert torch.equal(first, network(x))
    assert torch.equal(forward(x), first)  # and says it once


def test_pooling_does_not_refuse_to_be_deterministic_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network("resenc", 1, 1, 1)
    pools = [module for module in network.modules() if isinstance(module, nn.AvgPool3d)]
    x = torch.rand(1, 2, 4, 6, 8)
    wanted = nn.AvgPool3d(2)(x)

    def refuses(*_: Any, **__: Any) -> Any:
        raise RuntimeError("avg_pool3d_backward_cuda does not have a deterministic implementation")

    monkeypatch.setattr(nn.functional, "avg_pool3d", refuses)
    torch.use_deterministic_algorithms(True)
    try:
        found = [pool(x) for pool in pools]
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(found) == 5
    for each in found:
        torch.testing.assert_close(each, wanted)


def test_the_finest_level_stays_in_half_precision() -> None:
    network = build_network("resunet", 1, 1, 2).train()
    seen: list[torch.dtype] = []
    network.dec4.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.rand(1, 1, 8, 16, 16))
    network(torch.rand(1, 1, 8, 16, 16))
    assert seen == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize(("capability", "amp"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_a_device_without_bf16_trains_in_fp16(
    capability: tuple[int, int], amp: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "choose_device", lambda _: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    lines: list[str] = []
    made = make_plan(fake_store(), resolve(preset="gpu", assignments=[*SMALL]), lines.append)
    assert made.settings.amp == amp
    assert ("amp: fp16 instead of bf16, which Tesla T4 does not compute" in lines) == (amp == "fp16")


@pytest.mark.parametrize("preset", ["gpu", "h200", "fast-cpu"])
def test_false_alarms_cost_something_where_there_is_nothing_to_find(preset: str) -> None:
    loss = build_loss(resolve(preset=preset).loss)
    logits = torch.full((1, 1, 4, 4, 4), 2.0, requires_grad=True)
    loss(logits, torch.zeros(1, 4, 4, 4, dtype=torch.uint8), None).backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()
