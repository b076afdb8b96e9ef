"""Being asked to stop: by a scheduler (USR1, USR2, TERM) or by a key (INT)."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from livprep.errors import RunError

_REQUESTS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Stopped(RunError):  # noqa: N818 - flow of control, no fault
    """A run that ended after a signal, its last step saved; `exit_code` follows the signal (commands.md)."""

    def __init__(self, number: signal.Signals, message: str) -> None:
        super().__init__("INTERRUPTED", message)
        self.number = number

    @property
    def exit_code(self) -> int:
        """75 after USR1 and USR2 (run again to continue), 143 after TERM, 130 after INT."""
        if self.number in (signal.SIGTERM, signal.SIGINT):
            return 128 + int(self.number)
        return super().exit_code


class StopRequests:
    """Context in which a signal is noted instead of ending the process; a second INT interrupts at once.

    Outside of the main thread Python allows no handlers; the context then notes nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _REQUESTS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)
