"""Small parts of training: the network in place, optimizer, averaged weights, precision, frozen layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from livprep.errors import UsageError
from livtrain.config import Settings
from livtrain.model import build_model
from livtrain.networks import WindowedNetwork, get_network

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_ENCODER = ".encoder."  # part of the names of what a pretrained network brings along


def build_for_training(
    settings: Settings, out_channels: int, device: torch.device
) -> tuple[nn.Module, torch.memory_format]:
    """The network on the device, and the memory order of its input.

    Raises
    ------
    UsageError
        CONFIG_INVALID: the network lacks an option that is set, or `frozen` is and it cannot be pretrained.
    """
    if settings.frozen and "pretrained" not in get_network(settings.network).options:
        raise UsageError(
            "CONFIG_INVALID",
            f"frozen {settings.frozen:g}: network {settings.network} has no pretrained layers; leave it at 0",
        )
    network = build_model(
        settings,
        out_channels,
        dropout=settings.dropout,
        recompute=settings.activation_checkpointing,
        pretrained=settings.pretrained,
    )
    if settings.amp == "fp64":
        network.double().register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    # oneDNN's 3-D convolutions of few channels are 2-3 times faster in this order (measured)
    last = device.type == "cpu" if settings.channels_last is None else settings.channels_last
    if not last:
        return network.to(device), torch.contiguous_format
    order = torch.channels_last if get_network(settings.network).dims == 2 else torch.channels_last_3d
    return network.to(device, memory_format=order), torch.channels_last_3d  # type: ignore[call-overload]


def compiled(network: nn.Module) -> Callable[[Tensor], Any]:
    """The network compiled for patches of one shape; as it is, with a warning, where that fails.

    What torch makes has to be built on the machine, which takes a C compiler and Python's headers.
    """
    fast: Callable[[Tensor], Any] = torch.compile(network, dynamic=False)

    def forward(x_BCZYX: Tensor) -> Any:
        nonlocal fast
        if fast is network:
            return network(x_BCZYX)
        from torch._dynamo.exc import BackendCompilerFailed

        try:
            return fast(x_BCZYX)
        except BackendCompilerFailed as error:
            warnings.warn(
                f"compile: the network cannot be compiled here ({_first_line(error.inner_exception)}); it runs as it "
                "is, which is slower. A C compiler and Python's headers help, --set compile=false spares this line",
                RuntimeWarning,
                stacklevel=2,
            )
            fast = network
            return network(x_BCZYX)

    return forward


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def build_optimizer(settings: Settings, network: nn.Module) -> torch.optim.Optimizer:
    """Adam, AdamW (decoupled decay) or SGD with Nesterov momentum over all parameters that can be trained.

    Learned windows do not decay: 0 HU is no better a center than another.
    """
    parameters: list[Any] = [p for p in network.parameters() if p.requires_grad]
    rate, decay = settings.learning_rate, settings.weight_decay
    if isinstance(network, WindowedNetwork):
        windows = list(network.windows.parameters())
        own = {id(p) for p in windows}
        rest = [p for p in parameters if id(p) not in own]
        parameters = [{"params": rest}, {"params": windows, "weight_decay": 0.0}]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=settings.momentum, weight_decay=decay, nesterov=True)
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, rate, weight_decay=decay)
    return torch.optim.AdamW(parameters, rate, weight_decay=decay)


class Ema:
    """Exponential moving average of a network's weights and running statistics.

    The decay at step n is min(decay, (1 + n) / (10 + n)), so that early weights are soon forgotten
    (TensorFlow's `ExponentialMovingAverage`).

    Parameters
    ----------
    network
        What is averaged; the average starts as its weights.
    decay
        Share of the average that a step keeps, in (0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network, self._decay = network, decay
        self._average = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step`, 1 for the first."""
        keep = min(self._decay, (1 + step) / (10 + step))
        averages, values = [], []
        for name, value in self._network.state_dict().items():
            if value.is_floating_point():
                averages.append(self._average[name])
                values.append(value)
            else:
                self._average[name].copy_(value)
        torch._foreach_lerp_(averages, values, 1 - keep)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the network has the averaged weights; its own are back, bit for bit, after it."""
        own = {name: value.detach().clone() for name, value in self._network.state_dict().items()}
        self._network.load_state_dict(self._average)
        try:
            yield
        finally:
            self._network.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by name."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from averaged weights."""
        for name, value in self._average.items():
            value.copy_(state[name])


class Precision:
    """Autocast of the forward pass and, for fp16, scaling of the loss.

    Parameters
    ----------
    device_type
        `cpu` or `cuda`.
    amp
        `none`, `bf16` (the range of float32, needs no scaling), `fp16` or `fp64`.
    """

    def __init__(self, device_type: str, amp: str) -> None:
        self._device_type, self._amp = device_type, amp
        self._scaler = torch.amp.GradScaler(device_type, enabled=amp == "fp16")

    def autocast(self) -> torch.autocast:
        """Context of the forward pass."""
        half = AMP_DTYPES.get(self._amp)
        return torch.autocast(self._device_type, half or torch.bfloat16, enabled=half is not None)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled where fp16 asks for it."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: torch.optim.Optimizer, network: nn.Module, clip: float | None) -> None:
        """Clip the gradients to a norm and step; with fp16 a step whose gradients overflowed is left out."""
        self._scaler.unscale_(optimizer)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The scale and its age; empty without fp16."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with a scale."""
        if state:
            self._scaler.load_state_dict(state)


def drop_encoder_gradients(network: nn.Module) -> None:
    """Leave the encoder's filters as they are in this step; its norms are trained (as fastai does).

    Optimizers pass over parameters without a gradient. Unlike `requires_grad`, this changes no graph, so a compiled
    network is not compiled again when the encoder thaws.
    """
    for name, parameter in network.named_parameters():
        if _ENCODER in f".{name}" and parameter.ndim > 1:
            parameter.grad = None
