"""The server of `livprep view`: loopback, token, host; what it serves is the stored case."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from livprep.errors import UsageError
from livprep.shown import choose_window
from livprep.store import CaseStore, open_store
from livprep.viewing import Scene, Viewer
from livprep.windows import Window


@pytest.fixture
def case(small_store: Path) -> CaseStore:
    return open_store(small_store)["lits-068"]


@pytest.fixture
def viewer(case: CaseStore) -> Iterator[Viewer]:
    shown = Viewer(Scene(case, choose_window(case, None), case.read_labels()))
    thread = threading.Thread(target=shown.serve)
    thread.start()
    yield shown
    shown.close()
    thread.join()


def ask(viewer: Viewer, path: str, host: str | None = None) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", viewer.port, timeout=30)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, dict(answer.headers)


def test_it_listens_on_the_loopback_alone(viewer: Viewer) -> None:
    assert viewer.url.startswith(f"http://127.0.0.1:{viewer.port}/")
    assert viewer._server.server_address[0] == "127.0.0.1"
    with socket.socket() as other:
        other.settimeout(2)
        assert other.connect_ex(("127.0.0.2", viewer.port)) != 0


@pytest.mark.parametrize("path", ["/", "/wrong/", "/wrong/case.json", "/wrong/volume/hu.nii", "//case.json", "/%00/"])
def test_a_wrong_token_is_refused(viewer: Viewer, path: str) -> None:
    status, body, _ = ask(viewer, path)
    assert (status, body) == (403, b"403: wrong token\n")
    status, _, _ = ask(viewer, f"/{viewer.token[:-1]}/")
    assert status == 403


def test_tokens_are_long_and_new_each_time(case: CaseStore) -> None:
    viewers = [Viewer(Scene(case, Window(40, 220))) for _ in range(2)]
    tokens = {viewer.token for viewer in viewers}
    for viewer in viewers:
        viewer._server.server_close()
    assert len(tokens) == 2
    assert min(map(len, tokens)) >= 32


def test_another_host_name_is_refused(viewer: Viewer) -> None:
    """A page of elsewhere whose name was made to point to 127.0.0.1 gets nothing, token or not."""
    status, body, _ = ask(viewer, f"/{viewer.token}/", host=f"evil.example:{viewer.port}")
    assert (status, body) == (403, b"403: another host\n")


@pytest.mark.parametrize(
    "rest", ["../../pyproject.toml", "nope.js", "volume/other.nii", "volume/channel/../hu.nii", "page.html"]
)
def test_only_what_is_listed_is_served(viewer: Viewer, rest: str) -> None:
    assert ask(viewer, f"/{viewer.token}/{rest}")[0] == 404


def test_every_answer_forbids_other_origins(viewer: Viewer) -> None:
    for path in ("", "case.json", "nope", "viewer.js"):
        _, _, headers = ask(viewer, f"/{viewer.token}/{path}")
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "http" not in policy
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_volumes_are_the_stored_ones_with_the_stored_affine(viewer: Viewer, case: CaseStore) -> None:
    expected = {
        "hu": case.read_hu(),
        "reference": case.read_labels(),
        "prediction": case.read_labels(),
        "channel/wl40_ww220": case.read_window("wl40_ww220"),
    }
    for name, array in expected.items():
        status, body, _ = ask(viewer, f"/{viewer.token}/volume/{name}.nii")
        assert status == 200
        image = nib.Nifti1Image.from_bytes(body)
        np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), array)
        np.testing.assert_allclose(image.affine, case.geometry.affine_ras, atol=1e-4)


def test_the_description_holds_no_path(viewer: Viewer, case: CaseStore) -> None:
    status, body, _ = ask(viewer, f"/{viewer.token}/case.json")
    record = json.loads(body)
    assert status == 200
    assert (record["case"], record["labels"]) == ("lits-068", ["reference", "prediction"])
    assert [entry["name"] for entry in record["windows"][:2]] == ["wl40_ww220", "wl60_ww140"]
    assert str(case.path.parent) not in body.decode()


def test_a_taken_port_is_said(viewer: Viewer, case: CaseStore) -> None:
    with pytest.raises(UsageError, match=rf"port {viewer.port} on 127.0.0.1 cannot be used") as caught:
        Viewer(Scene(case, Window(40, 220)), viewer.port)
    assert caught.value.code == "USAGE"


def test_niivue_is_the_published_file_with_its_license() -> None:
    import hashlib
    from importlib import resources

    folder = resources.files("livprep.viewing").joinpath("niivue")
    assert hashlib.sha256(folder.joinpath("niivue.umd.js").read_bytes()).hexdigest() == (
        "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    )
    assert "BSD 2-Clause License" in folder.joinpath("LICENSE").read_text(encoding="utf-8")
