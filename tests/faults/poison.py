"""Cases that end or hold up their worker: a `sitecustomize` changes a step of their ingest in a test's processes."""

from __future__ import annotations

import os
from pathlib import Path

DEEDS = {
    "exit": "os._exit(7)",
    "segfault": "ctypes.string_at(0)",
    "allocate": "numpy.ones(50 << 30, dtype='u1')",
}
"""What a case does that ends its worker; 50 GB are more than a worker may take."""

_SITECUSTOMIZE = """
import importlib.util, sys

class Changed:
    def find_spec(self, name, path=None, target=None):
        if name != {module!r}:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            setattr(module, {function!r}, changed(getattr(module, {function!r})))
        spec.loader.exec_module = exec_module
        return spec

def changed(function):
    def call(*arguments, **options):
        if {name} in {cases!r}:
            import ctypes, numpy, os, resource, time
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            {deed}
        return function(*arguments, **options)
    return call

sys.meta_path.insert(0, Changed())
"""


def poisoned(folder: Path, case: str, deed: str) -> dict[str, str]:
    """Environment in which reading `case` does a deed of `DEEDS`."""
    return _environment(folder, "livprep.convert", "read_case", "arguments[0].case_id", [case], DEEDS[deed])


def held(folder: Path, cases: list[str], hold: Path) -> dict[str, str]:
    """Environment in which cases that are about to appear wait, staged and whole, as long as the file `hold` exists."""
    deed = f"while os.path.exists({str(hold)!r}): time.sleep(0.02)"
    return _environment(folder, "livprep.store.layout", "publish", "arguments[1].name", cases, deed)


def _environment(folder: Path, module: str, function: str, name: str, cases: list[str], deed: str) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    text = _SITECUSTOMIZE.format(module=module, function=function, name=name, cases=cases, deed=deed)
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    paths = [str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
