"""Nothing listens beyond this machine, and nothing from outside is run as code."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from building import lits_pair
from conftest import Outcome

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for name in ("livprep", "livtrain", "cli/livcli") for path in sorted((ROOT / name).rglob("*.py"))]
FORBIDDEN = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "joblib.load"}
LOOPBACK = {"127.0.0.1", "::1"}


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """Addresses at which a process and its children listen now."""
    found: set[tuple[str, int]] = set()
    for each in [process, *process.children(recursive=True)]:
        try:
            connections = each.net_connections(kind="inet")
        except psutil.Error:
            continue  # it has ended meanwhile
        found |= {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}
    return found


def watched(folder: Path, *line: object) -> tuple[int, set[str]]:
    """Run a command in a process of its own; its exit code, and where it or its workers listened."""
    script = "import sys; from livcli.livprep_main import main\nif __name__ == '__main__': main()"
    (folder / "main.py").write_text(script)
    path = os.pathsep.join([str(ROOT), str(ROOT / "cli"), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, str(folder / "main.py"), *map(str, line)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        found: set[str] = set()
        while running.poll() is None:
            found |= {ip for ip, _ in listening(psutil.Process(running.pid))}
            time.sleep(0.02)
        return running.returncode, found


def test_workers_listen_on_the_loopback_alone(tmp_path: Path) -> None:
    for number in (3, 4, 5, 6):
        lits_pair(tmp_path / "in", number, seed=number)
    store = tmp_path / "store"
    for line in (
        ("ingest", tmp_path / "in", "--store", store, "--workers", 2),
        ("window", "--wl", 40, "--ww", 220, "--store", store, "--workers", 2),
        ("verify", "--store", store, "--deep", "--workers", 2),
    ):
        code, found = watched(tmp_path, *line)
        assert code == 0, line
        assert found, f"{line}: nothing was seen to listen, so nothing was tested"
        assert found <= LOOPBACK, (line, found)
    left = {path.name for path in tmp_path.iterdir()} - {"in", "store", "main.py", "dask-scratch-space"}
    assert not left
    scratch = tmp_path / "dask-scratch-space"
    files = [path for path in scratch.rglob("*") if path.is_file()] if scratch.exists() else []
    assert {path.suffix for path in files} <= {".lock"}


def test_other_commands_open_no_socket(
    livprep: Callable[..., Outcome], store_copy: Path, phantom_lits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []

    def refuse(self: socket.socket, *address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            opened.append(address)
            raise OSError("no network here")

    for name in ("bind", "listen", "connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for line in (
        ("inspect", phantom_lits),
        ("info", "--store", store_copy),
        ("overlaps", "--store", store_copy),
        ("split", "--store", store_copy),
        ("verify", "--store", store_copy, "--deep", "--workers", 1),
        ("window", "--wl", 10, "--ww", 100, "--store", store_copy, "--workers", 1),
        ("gc", "--store", store_copy),
        ("catalog",),
        ("explain", "HU_RANGE"),
    ):
        assert livprep(*line).code == 0, line
    assert opened == []


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call of a module, by its dotted name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_nothing_from_outside_is_unpickled_or_run() -> None:
    seen = []
    for path in SOURCES:
        for name, call in calls(path):
            assert name not in FORBIDDEN, f"{path.name}:{call.lineno}: {name}"
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            where = f"{path.name}:{call.lineno}: {name}"
            assert given.get("shell", "False") == "False", where
            assert given.get("allow_pickle", "False") == "False", where
            if name == "torch.load":
                assert given.get("weights_only") == "True", where
            if name in ("yaml.load", "yaml.parse"):
                assert given["Loader"] in ("_Loader", "_UniqueKeyLoader"), where  # both derive from the safe one
            seen.append(name)
    assert {"torch.load", "yaml.load"} <= set(seen)


def test_the_loaders_of_yaml_make_plain_values_only(tmp_path: Path) -> None:
    from livprep.catalog import load_catalog
    from livprep.errors import CatalogError, UsageError
    from livtrain.config import load_settings

    for text in (
        "a: !!python/object/apply:os.system ['touch x']", "!!python/name:os.system", "? [a]\n: 1", "a: 2001-13-01",
        "a: " + "9" * 5000, "[" * 3000,
    ):  # fmt: skip
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(CatalogError, match=r"catalogue a\.yaml: "):
            load_catalog(tmp_path / "a.yaml")
        with pytest.raises(UsageError):
            load_settings(tmp_path / "a.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]
