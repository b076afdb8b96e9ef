"""`livprep verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from livcli.options import output_options, say, store_option


@click.command(
    epilog="Example: livprep verify --deep && livprep verify ircadb/",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("sources", nargs=-1, metavar="[SRC...]", type=click.Path(path_type=Path))
@store_option
@click.option("--deep", is_flag=True, help="Also hash and decode everything, and compute again what can be.")
@click.option(
    "--dataset",
    type=click.Choice(["auto", "ircadb", "lits", "own"]),
    default="auto",
    show_default=True,
    help="What lies under SRC.",
)
@click.option(
    "--catalog",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Catalogue to use instead of the built-in one.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes; by default as many as fit.")
@click.option("--scheduler", help="Address of a running Dask scheduler.")
@output_options
def verify(sources: tuple[Path, ...], as_json: bool, quiet: bool, **choices: Any) -> int:
    """Look whether the store is whole: files, sizes, manifests, metadata, splits.

    With SRC each case is also read and prepared again and compared. One finding a line; an error among them makes
    the exit code 4.
    """
    import json
    from collections import Counter
    from dataclasses import asdict

    from livprep.audit import AuditRequest, plan_audit, run_audit

    planned = plan_audit(AuditRequest(sources=sources, **choices))
    say(quiet, f"{len(planned.jobs)} cases, {planned.workers} worker(s), store {planned.request.store}")
    counts: Counter[str] = Counter()
    for verdict in run_audit(planned):
        for finding in verdict.findings:
            counts[finding.severity] += 1
            line = f"{finding.case or 'store':<14} {finding.severity:<8} {finding.code}: {finding.detail}"
            click.echo(json.dumps(asdict(finding)) if as_json else line)
    say(quiet, ", ".join(f"{n} {severity}(s)" for severity, n in sorted(counts.items())) or "nothing found")
    return 4 if counts["error"] else 0
