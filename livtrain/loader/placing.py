"""Bring filled host memory to a CUDA device while the network computes.

Copies and unpacking run on a stream of their own; the consumer's stream waits for them by an event, the processor
never does. Host memory is kept until its copy is done, and only then goes round.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future

import torch
from torch import Tensor

from livtrain.loader.batch import Batch
from livtrain.loader.filling import BatchFiller, Filled


class CudaPlacer:
    """Copies batches to a CUDA device, one of them ahead of its being asked for.

    Parameters
    ----------
    filler
        Whose batches they are.
    device
        A CUDA device.
    """

    def __init__(self, filler: BatchFiller, device: torch.device) -> None:
        self._filler, self._device = filler, device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copying: deque[tuple[torch.cuda.Event, Filled]] = deque()
        self._ahead: tuple[Filled, Batch, torch.cuda.Event] | None = None

    def place_ahead(self, future: Future[Filled]) -> None:
        """Start the copy of the batch that will be taken next; a reader's error waits until then."""
        if self._ahead is None and future.exception() is None:
            filled = future.result()
            self._ahead = filled, *self._place(filled)

    def take(self, filled: Filled) -> Batch:
        """The batch on the device, ready for the current stream."""
        ahead, self._ahead = self._ahead, None
        batch, done = ahead[1:] if ahead is not None and ahead[0] is filled else self._place(filled)
        current = torch.cuda.current_stream(self._device)
        current.wait_event(done)
        for tensor in (batch.flat, *(batch.unpacked or ())):
            if tensor is not None:  # made on the other stream: the allocator must not reuse it under this one
                tensor.record_stream(current)
        return batch

    def _place(self, filled: Filled) -> tuple[Batch, torch.cuda.Event]:
        while self._copying and self._copying[0][0].query():  # type: ignore[no-untyped-call]
            self._copying.popleft()
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            batch = self._moved(filled)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        self._copying.append((done, filled))
        return batch, done

    def _moved(self, filled: Filled) -> Batch:
        if filled.flat is not None:
            # int16 carries the same bits, and more of torch works on it than on uint16
            flat = self._copied(torch.from_numpy(filled.flat).view(torch.int16)).view(torch.uint16)
            return self._filler.deliver(filled.refs, filled.margins_zyx, flat)
        assert filled.image is not None
        assert filled.labels is not None
        image, labels = (self._copied(torch.from_numpy(array)) for array in (filled.image, filled.labels))
        return self._filler.deliver_bytes(filled, image, labels)

    def _copied(self, host: Tensor) -> Tensor:
        return host.to(self._device, non_blocking=True)
