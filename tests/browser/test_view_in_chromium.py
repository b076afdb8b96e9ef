"""`livprep view` in a real browser: the liver lies on the R side, the spine below, and no request leaves 127.0.0.1.

The browser is Debian's (`apt-get install chromium`), driven by the Python package playwright; neither downloads
anything here.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

CHROMIUM = os.environ.get("LIVPREP_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.timeout(280),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
]

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-domain-reliability",
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One phantom of 96 x 96 pixels, with an equalized channel."""
    from livprep.channels import Equalized
    from livprep.cohort import IngestRequest, plan_ingest, plan_windows, run_ingest, run_windows
    from livprep.store import open_store
    from livprep.synthesis import write_ircadb
    from livprep.windows import Window

    folder = tmp_path_factory.mktemp("view")
    write_ircadb(folder / "ircadb", (1,), seed=3, size=96)
    list(run_ingest(plan_ingest(IngestRequest((folder / "ircadb",), folder / "liver.zarr", workers=1))))
    opened = open_store(folder / "liver.zarr")
    list(run_windows(opened, plan_windows(opened, [Window(40, 220), Equalized.make()]), workers=1))
    return folder / "liver.zarr"


@pytest.fixture(scope="module")
def address(store: Path) -> Iterator[str]:
    """The page of a `livprep view` in a process of its own."""
    script = "from livcli.livprep_main import main; main()"
    command = [sys.executable, "-c", script, "view", "ircadb-01", "--store", str(store), "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def shown(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, list[str]]]:
    """The page once it is ready, and every address that the browser asked for."""
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")), executable_path=CHROMIUM, headless=True, args=list(FLAGS),
            viewport={"width": 1200, "height": 800},
        )  # fmt: skip
        page = browser.new_page()
        problems: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
        page.goto(address)
        page.wait_for_selector("body[data-ready]", timeout=120_000)
        assert page.get_attribute("body", "data-ready") == "yes", page.text_content("#status")
        assert problems == []
        yield page, asked
        browser.close()


def canvas(page: Any) -> np.ndarray:
    """Pixels of the canvas, `(rows, columns, RGB)`, without the crosshair's line and the line of text."""
    page.evaluate("livprepViewer.setCrosshairWidth(0); document.getElementById('status').style.visibility = 'hidden'")
    page.wait_for_timeout(400)
    data = page.locator("#gl").screenshot()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def set_slider(page: Any, name: str, value: float) -> None:
    page.evaluate(
        "([id, value]) => { const slider = document.getElementById(id); slider.value = value;"
        " slider.dispatchEvent(new Event('input')); }",
        [name, value],
    )


def choose(page: Any, view: str) -> None:
    page.click(f'button[data-view="{view}"]')


def liver_pixels(image: np.ndarray) -> np.ndarray:
    """Rows and columns of pixels that are blue beyond gray."""
    return np.argwhere((image[..., 2] - image[..., 0] > 60) & (image[..., 2] > 90))


def body_pixels(image: np.ndarray) -> np.ndarray:
    return np.argwhere(image.max(axis=2) > 25)


def test_the_liver_lies_on_the_r_side_and_the_spine_below(shown: tuple[Any, list[str]]) -> None:
    page, _ = shown
    choose(page, "axial")
    set_slider(page, "wl", 40)
    set_slider(page, "ww", 400)
    set_slider(page, "reference", 1.0)
    image = canvas(page)
    liver, body = liver_pixels(image), body_pixels(image)
    assert len(liver) > 500
    assert liver[:, 1].mean() < body[:, 1].mean() - 20  # the left of the picture, under the letter R
    set_slider(page, "reference", 0.0)
    set_slider(page, "wl", 400)
    set_slider(page, "ww", 300)
    bone = np.argwhere(canvas(page).min(axis=2) > 200)
    spine = bone[np.abs(bone[:, 1] - body[:, 1].mean()) < 60]
    assert len(spine) > 50
    vertebra = spine[np.abs(spine - np.median(spine, axis=0)).sum(axis=1).argmin()]  # the middle may be the canal
    assert np.median(spine[:, 0]) > body[:, 0].mean() + 20  # below: posterior
    # A click on the left of the body is a place to the patient's right, in the scan's own millimeters.
    box = page.locator("#gl").bounding_box()
    row, column = liver.mean(axis=0)
    middle = body.mean(axis=0)
    places = []
    for y, x in (tuple(vertebra), (middle[0], middle[1]), (row, column)):
        page.mouse.click(box["x"] + float(x), box["y"] + float(y))
        page.wait_for_timeout(200)
        places.append(page.evaluate("livprepLocation"))
    spine_at, middle_at, liver_at = places
    assert liver_at["mm"][0] > middle_at["mm"][0] + 5  # RAS: x grows to the right
    assert liver_at["label"] in (1, 2)
    assert spine_at["mm"][1] < middle_at["mm"][1] - 5  # y grows to the front
    assert spine_at["hu"] > 150
    set_slider(page, "wl", 50)
    set_slider(page, "ww", 400)


def test_labels_fade_with_their_slider(shown: tuple[Any, list[str]]) -> None:
    page, _ = shown
    choose(page, "axial")
    set_slider(page, "reference", 0.0)
    assert len(liver_pixels(canvas(page))) == 0
    set_slider(page, "reference", 0.6)
    assert len(liver_pixels(canvas(page))) > 500


def test_a_channel_of_the_whole_scan_is_an_overlay(shown: tuple[Any, list[str]]) -> None:
    page, asked = shown
    choose(page, "axial")
    set_slider(page, "reference", 0.0)
    before = canvas(page)
    page.select_option("#channel", "equalized_volume")
    page.wait_for_selector("body[data-channel='equalized_volume']", timeout=30_000)
    assert np.abs(canvas(page) - before).mean() > 3
    set_slider(page, "reference", 0.6)
    assert len(liver_pixels(canvas(page))) > 500  # the labels stay above it, and their slider stays theirs
    set_slider(page, "reference", 0.0)
    page.select_option("#channel", "")
    page.wait_for_selector("body[data-channel='']")
    assert np.abs(canvas(page) - before).max() <= 2
    assert any(url.endswith("volume/channel/equalized_volume.nii") for url in asked)


@pytest.mark.parametrize("view", ["slices + 3D", "coronal", "sagittal", "3D"])
def test_every_view_shows_the_liver(shown: tuple[Any, list[str]], view: str) -> None:
    page, _ = shown
    set_slider(page, "reference", 0.8)
    choose(page, view)
    image = canvas(page)
    assert len(liver_pixels(image)) > 300
    if view == "coronal":  # radiological there too
        assert liver_pixels(image)[:, 1].mean() < body_pixels(image)[:, 1].mean()


def test_no_request_leaves_the_loopback(shown: tuple[Any, list[str]], address: str) -> None:
    page, asked = shown
    assert len(asked) >= 6
    served = [urlsplit(url) for url in asked if not url.startswith(("data:", "blob:"))]
    assert {(url.scheme, url.netloc) for url in served} == {("http", urlsplit(address).netloc)}
    refused = page.evaluate("fetch('https://example.org/').then(() => 'reached', () => 'refused')")
    assert refused == "refused"  # the policy, before any packet


def test_a_screenshot_for_the_guide(shown: tuple[Any, list[str]]) -> None:
    """Written where LIVPREP_SCREENSHOT says; the picture of docs/looking.md."""
    page, _ = shown
    page.evaluate("livprepViewer.setCrosshairWidth(0.25); document.getElementById('status').style.visibility = ''")
    set_slider(page, "reference", 0.45)
    choose(page, "slices + 3D")
    page.wait_for_timeout(500)
    data = page.screenshot(path=os.environ.get("LIVPREP_SCREENSHOT"))
    assert data.startswith(b"\x89PNG")


def test_a_wrong_token_shows_nothing(shown: tuple[Any, list[str]], address: str) -> None:
    page, _ = shown
    parts = urlsplit(address)
    answer = page.request.get(f"{parts.scheme}://{parts.netloc}/wrong/")
    assert answer.status == 403
