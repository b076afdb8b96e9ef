"""One progress bar for receipts; plain lines where stderr is no terminal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from livcli.options import advise
from livprep.cases import Receipt

T = TypeVar("T")


def report(receipts: Iterable[Receipt], total: int, what: str, *, as_json: bool, quiet: bool) -> int:
    """Print each receipt on stdout and the progress on stderr.

    Returns
    -------
    Exit code: 0, or 3 where a case was rejected.
    """
    counts: Counter[str] = Counter()
    codes: set[str] = set()
    with _bar(quiet) as bar:
        task = bar.add_task(what, total=total)
        for receipt in receipts:
            counts[receipt.status] += 1
            codes |= {receipt.code} if receipt.status == "rejected" else set()
            bar.advance(task)
            click.echo(json.dumps(asdict(receipt)) if as_json else _line(receipt))
            if not as_json and not quiet:
                for warning in receipt.warnings:
                    click.echo(f"  {warning}", err=True)
    advise(quiet or as_json, codes)
    if not quiet:
        click.echo(", ".join(f"{count} {status}" for status, count in sorted(counts.items())), err=True)
    return 3 if counts["rejected"] else 0


def counted(items: Iterable[T], total: int, what: str, *, quiet: bool) -> Iterator[T]:
    """Pass items on, with a progress bar on stderr where that is a terminal."""
    with _bar(quiet) as bar:
        yield from bar.track(items, total=total, description=what)


def _bar(quiet: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
    )


def _line(receipt: Receipt) -> str:
    """One line for a person."""
    size = f"{receipt.bytes_out / 1e6:7.1f} MB" if receipt.bytes_out else " " * 10
    text = f"{receipt.case:<14} {receipt.status:<10} {size} {receipt.seconds:6.1f} s"
    if receipt.code:
        text += f"  {receipt.code}: {receipt.detail}"
    elif receipt.detail:
        text += f"  {receipt.detail}"
    return text.rstrip()
