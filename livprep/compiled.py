"""Loops that numpy would do in many passes over a volume, compiled when first called.

numba is imported then and not before, so that commands which touch no voxel start fast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function of arrays and numbers at its first call; it then runs without the interpreter's lock.

    The machine code is kept beside the module, or in the user's cache folder where that is read-only; where
    neither can be written it is made anew in each process. Floating-point sums keep the order in which they are
    written (no `fastmath`), so that results do not depend on the processor.
    """
    made: list[Callable[P, R]] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not made:
            made.append(_compile(function))
        return made[0](*args, **kwargs)

    return call


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    import numba

    try:
        return numba.njit(nogil=True, cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # numba's "no locator available": no folder for its cache
        return numba.njit(nogil=True)(function)  # type: ignore[no-any-return]
