"""The plan of the house, held by tests: layers and doors, light start-up, codes in use."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from livprep.errors import CODES

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (ROOT / "livprep", ROOT / "livtrain", ROOT / "cli" / "livcli")
SOURCES = [path for package in PACKAGES for path in sorted(package.rglob("*.py"))]


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


HEAVY = {
    "torch",
    "monai",
    "zarr",
    "dask",
    "distributed",
    "pydicom",
    "nibabel",
    "SimpleITK",
    "scipy",
    "xarray",
    "numpy",
    "numba",
    "jinja2",
    "matplotlib",
    "highdicom",
    "onnx",
}


@pytest.mark.parametrize(
    "arguments",
    [
        ["livprep_main", "livprep", "--help"],
        ["livprep_main", "livprep", "--version"],
        ["livprep_main", "livprep", "ingest", "--help"],
        ["livprep_main", "livprep", "window", "--help"],
        ["livprep_main", "livprep", "info", "--help"],
        ["livtrain_main", "livtrain", "--help"],
        ["livtrain_main", "livtrain", "fit", "--help"],
        ["livtrain_main", "livtrain", "predict", "--help"],
        ["livtrain_main", "livtrain", "sweep", "--help"],
        ["livtrain_main", "livtrain", "evaluate", "--help"],
        ["livtrain_main", "livtrain", "export", "--help"],
        ["livprep_main", "livprep", "export", "--help"],
    ],
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    module, *line = arguments
    script = (
        f"import sys, json, atexit; sys.argv = {line!r}\n"
        f"atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
        f"from livcli.{module} import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}
    assert not loaded & HEAVY


def test_livprep_never_loads_torch_and_matplotlib_only_for_pictures() -> None:
    drawing = ("livprep.figures", "livprep.preview", "livprep.reporting")
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "livprep").rglob("*.py")]
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    plain = sorted(name for name in names if not name.startswith(drawing))
    assert len(plain) > 50
    script = (
        f"import sys, importlib\nfor name in {plain!r}: importlib.import_module(name)\n"
        "assert not {'torch', 'monai', 'matplotlib'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


# --- codes ------------------------------------------------------------------------------------------------------

_CODE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
_CARRIERS = {
    "LivError", "UsageError", "GeometryError", "SourceError", "StoreError", "CatalogError", "RunError", "Note",
    "Rejection", "Receipt", "Finding",
}  # fmt: skip


def raised_codes() -> Iterator[tuple[str, str]]:
    """(code, where) of each upper-case string that stands in a call that makes an error or a finding."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in _CARRIERS:
                for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                    for inner in ast.walk(argument) if isinstance(argument, ast.IfExp | ast.Constant) else ():
                        if (
                            isinstance(inner, ast.Constant)
                            and isinstance(inner.value, str)
                            and _CODE.fullmatch(inner.value)
                        ):
                            yield inner.value, f"{path.relative_to(ROOT)}:{node.lineno}"


def test_every_raised_code_is_explained() -> None:
    found = list(raised_codes())
    assert len(found) > 60
    assert [f"{where}: {code}" for code, where in found if code not in CODES] == []


def test_every_explained_code_is_used() -> None:
    """A code that nothing raises is a promise that nothing keeps."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES if path.name != "errors.py")
    used = set(re.findall(r'"([A-Z][A-Z0-9_]+)"', text)) | {"GEOMETRY"}  # GeometryError's default
    assert sorted(set(CODES) - used) == []


# --- form -------------------------------------------------------------------------------------------------------


def test_no_module_of_a_forbidden_name() -> None:
    forbidden = {"utils", "util", "helpers", "helper", "common", "misc"}
    shadowing = set(sys.stdlib_module_names)
    for path in SOURCES:
        assert path.stem not in forbidden, path
        assert path.parent not in (ROOT / "cli", ROOT) or path.stem not in shadowing, path


def test_no_assert_or_print_where_errors_or_commands_belong() -> None:
    for path in SOURCES:
        if path.is_relative_to(ROOT / "livprep"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                called = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
                assert not called, f"{path}:{node.lineno} prints"


def test_what_is_public_says_what_it_is() -> None:
    missing = []
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if ast.get_docstring(tree) is None:
            missing.append(str(path.relative_to(ROOT)))
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and ast.get_docstring(node) is None:
                missing.append(f"{path.relative_to(ROOT)}:{node.name}")
    assert missing == []


def test_the_console_scripts_are_installed_and_quick_to_answer() -> None:
    script = Path(sys.executable).with_name("livprep")
    if not script.exists():
        pytest.skip("livprep is not installed as a console script here")
    done = subprocess.run(
        [script, "--version"], capture_output=True, text=True, check=False, timeout=60, env={**os.environ}
    )
    assert done.returncode == 0
    assert done.stdout.startswith("livprep, version ")
