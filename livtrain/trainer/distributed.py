"""The processes of one run (torchrun): who they are, what they agree on, who writes.

Each process (rank) trains on its own part of every batch; gradients are averaged (DistributedDataParallel), so all
have the same weights. What decides the course - clocks, signals, losses, Dice - is exchanged, so that no rank does
what another does not. A single process needs none of it: every call returns at once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from livprep.errors import LivError, RunError, UsageError

T = TypeVar("T")

_PATIENCE = timedelta(hours=1)
"""How long a rank waits for the others: one of them may score a large case alone."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run: `rank` 0 ... `world` - 1, `local` among those of its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def device(self, wanted: str) -> str:
        """The device of this rank: with several ranks on CUDA, the one with its local number.

        Raises
        ------
        UsageError
            CONFIG_INVALID: one CUDA device is named for all of them.
        """
        if self.world == 1 or wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
            return wanted
        if wanted not in ("auto", "cuda"):
            raise UsageError(
                "CONFIG_INVALID",
                f"device {wanted!r} for {self.world} processes: expected auto, cuda (one for each process) or cpu",
            )
        return f"cuda:{self.local}"

    def wait(self) -> None:
        """Return once every rank has come here."""
        self.largest(0)

    def check_same(self, what: str, value: int) -> None:
        """Check that every rank read the same; a file system may show them different files for a moment.

        Raises
        ------
        RunError
            CHECKPOINT_CORRUPT, on every rank.
        """
        if len(set(found := self.gather(value))) > 1:
            raise RunError("CHECKPOINT_CORRUPT", f"{what} is {found} on the processes, expected one; start again")

    def largest(self, *values: float) -> list[float]:
        """The largest of each value over the ranks."""
        if self.world == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(together, distributed.ReduceOp.MAX)
        return cast(list[float], together.tolist())

    def mean(self, values: Tensor) -> list[float]:
        """The mean of each value over the ranks; not a number where it is one on any of them."""
        if self.world == 1:
            return cast(list[float], values.tolist())
        together = values.detach().to("cpu", torch.float64)
        distributed.all_reduce(together)
        return cast(list[float], (together / self.world).tolist())

    def gather(self, value: T) -> list[T]:
        """The values of all ranks in their order; everything in them must pickle."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value)
        return cast(list[T], found)

    def first_decides(self, decide: Callable[[], T]) -> T:
        """What rank 0 gets from a call, or its error, on every rank; the others do not call."""
        if self.world == 1:
            return decide()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = decide()
            except LivError as error:
                outcome[1] = error
        distributed.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return cast(T, outcome[0])

    def part(self, values: tuple[T, ...]) -> tuple[T, ...]:
        """This rank's share of a list: every `world`-th, so that neighbors go to different ranks."""
        return values[self.rank :: self.world]

    def in_order(self, parts: list[list[T]]) -> list[T]:
        """The list whose parts `part` dealt."""
        count = sum(map(len, parts))
        return [parts[k % self.world][k // self.world] for k in range(count)]

    def seed(self, seed: int) -> None:
        """Seed what differs among ranks (dropout); rank 0 keeps the stream that a single process has."""
        if not self.first:
            torch.manual_seed(int(np.random.SeedSequence([seed, self.rank]).generate_state(1, np.uint64)[0] >> 1))

    def synchronized(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network with batch norms over all ranks' patches; on a CPU torch has none, each rank keeps its own."""
        if self.world == 1 or device.type != "cuda":
            return network
        return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(network))  # type: ignore[no-untyped-call]

    def parallel(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network whose gradients are averaged over ranks; it starts from rank 0's weights."""
        if self.world == 1:
            return network
        # the strides of a 1 x 1 x 1 kernel mean nothing; torch remarks on them at the first step
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)


def unsynchronized(parallel: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
    """Context in which gradients only add up on this rank: all but the last of accumulated batches."""
    return parallel.no_sync() if wanted and isinstance(parallel, DistributedDataParallel) else nullcontext()


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """Join the run that torchrun's environment describes; alone without one, or inside of a run that was joined.

    CUDA tensors go through NCCL, those of a CPU, and whatever ranks agree on, through gloo.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    ranks = Ranks(int(os.environ["RANK"]), world, int(os.environ.get("LOCAL_RANK", "0")))
    if distributed.is_initialized():
        yield ranks
        return
    if os.environ.get("MASTER_ADDR") in _LOOPBACK:
        for library in ("GLOO", "NCCL"):  # nobody else needs to reach these processes
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda and ranks.local < torch.cuda.device_count():
        torch.cuda.set_device(ranks.local)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
    try:
        yield ranks
        distributed.barrier(device_ids=[ranks.local] if cuda else None)  # nobody leaves while rank 0 writes
    finally:
        distributed.destroy_process_group()
