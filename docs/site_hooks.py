"""Pages of the site that follow from the code: every code, every window preset, every benchmark's result.

MkDocs calls these functions while it builds (`make docs`); nothing is written into docs/.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from livprep.catalog import load_catalog
from livprep.errors import CODES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    pages = {"codes.md": codes(), "window-presets.md": presets(), "benchmarks.md": benchmarks()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to files beside docs/ lead to the benchmark page or become plain text: the site holds docs/ alone."""
    here = "../" * page.file.src_uri.count("/")
    markdown = re.sub(r"\]\((?:\.\./)+benchmarks/results/(\w+)\.md\)", rf"]({here}benchmarks.md#\1)", markdown)
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+(?!benchmarks)[^)#]+\)", r"`\1`", markdown)


def codes() -> str:
    """`livprep explain` of every code."""
    rows = [
        f"| <span id='{name}'></span>`{name}` | {entry.exit_code} | {cell(entry.meaning)} | {cell(entry.remedy)} |"
        for name, entry in CODES.items()
    ]
    head = "# Codes\n\nEvery fault and remark has a code; `livprep explain CODE` prints the same. Exit is the code of\n"
    head += (
        "a command that ends with it alone; 0 is a remark.\n\n| code | exit | means | what to do |\n|---|---|---|---|\n"
    )
    return head + "\n".join(rows) + "\n"


def presets() -> str:
    """The catalogue's windows."""
    facts = load_catalog().windows
    default = {window.name for window in facts.default_bank()}
    rows = [
        f"| `{name}`{' (default)' if name in default else ''} | {fact.wl:g} | {fact.ww:g} | "
        f"{fact.wl - fact.ww / 2:g} … {fact.wl + fact.ww / 2:g} | {cell(fact.source)} |"
        for name, fact in facts.preset_facts.items()
    ]
    head = (
        "# Window presets\n\nFor `livprep window --preset NAME`; from `catalog.yaml`. Default: what `livprep window`\n"
    )
    return (
        head
        + "adds without options.\n\n| name | WL | WW | HU | from |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


def benchmarks() -> str:
    """All of benchmarks/results, one section each, with an anchor of the file's name."""
    parts = ["# Benchmarks\n\nWhat the scripts of `benchmarks/` printed, with machine and versions.\n"]
    for path in sorted(RESULTS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        title, _, body = text.partition("\n")
        body = re.sub(r"^#(?=#* )", "##", body, flags=re.MULTILINE)  # below this page's own title
        body = re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"`\1`", body)
        parts.append(f"## {title.lstrip('# ')} {{ #{path.stem} }}\n{body}")
    return "\n".join(parts)


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")
