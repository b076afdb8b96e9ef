"""Options that several commands share."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


_OWN = ("livprep", "livtrain", "livcli")


def _store_default() -> str:
    return os.environ.get("LIVPREP_STORE") or "liver.zarr"


def _verbosity(ctx: click.Context, param: click.Parameter, value: int) -> int:
    if param.name == "verbose" and value:
        handler = logging.StreamHandler()
        # Other libraries say what nobody asked for (numcodecs: every codec), and pydicom quotes headers.
        handler.addFilter(lambda record: record.name.partition(".")[0] in _OWN)
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s", handlers=[handler])
        logging.getLogger().setLevel(logging.DEBUG)
    return value


def store_option(command: F) -> F:
    """`--store PATH`, else $LIVPREP_STORE, else ./liver.zarr."""
    return click.option(
        "--store",
        type=click.Path(path_type=Path),
        default=_store_default,
        show_default="$LIVPREP_STORE or ./liver.zarr",
        help="The Zarr store.",
    )(command)


def output_options(command: F) -> F:
    """`--json`, `-q`, `-v`."""
    command = click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout.")(command)
    command = click.option("-q", "--quiet", is_flag=True, help="No progress and no remarks.")(command)
    return click.option(
        "-v",
        "--verbose",
        count=True,
        callback=_verbosity,
        expose_value=False,
        help="Log what happens; -v shows where a defect lies, without texts (LIVPREP_DEBUG=1: with them).",
    )(command)


def say(quiet: bool, text: str) -> None:
    """One remark on stderr."""
    if not quiet:
        click.echo(text, err=True)


def advise(quiet: bool, codes: Iterable[str]) -> None:
    """What to do about each code that something was rejected with, on stderr."""
    from livprep.errors import CODES

    for code in sorted(set(codes)):
        say(quiet, f"{code}: {CODES[code].remedy}")


ARRAY_INDICES = ("SLURM_ARRAY_TASK_ID", "PBS_ARRAY_INDEX", "PBS_ARRAYID", "LSB_JOBINDEX", "SGE_TASK_ID")
"""Variables in which SLURM, PBS Professional, Torque, LSF and Grid Engine tell a task its number."""


class Part(click.ParamType[Any]):
    """`I/N`, I from 1; `auto/N` takes I from the batch system's array."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse into a pair of integers."""
        if isinstance(value, tuple):
            return value
        index, _, count = str(value).partition("/")
        if index == "auto":
            index = next((os.environ[name] for name in ARRAY_INDICES if name in os.environ), "")
            if not index:
                self.fail(f"{value!r}: this is no task of a job array ({', '.join(ARRAY_INDICES)})", param, ctx)
        if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
            self.fail(f"{value!r} is no part I/N with 1 <= I <= N", param, ctx)
        return int(index), int(count)
