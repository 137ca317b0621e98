"""TensorBoard as `cnnlab dashboard` starts it, and the report, in a real browser.

The screenshots stay in the folder that CNNLAB_SCREENSHOTS names; the README shows some of them.
"""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnlab.report import report_run
from tests.conftest import ROOT, Train, drawn, run_process

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    # selenium 4.51 leaves its sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
if not (CHROMIUM and DRIVER) and not os.environ.get("CNNLAB_NEEDS_BROWSER"):
    pytestmark.append(
        pytest.mark.skip(reason="there is no chromium with its chromedriver: apt install chromium-driver")
    )

CUSTOM = "tf-custom-scalar-multi-line-chart-card"
# All text and all elements, those inside web components too.
EVERYTHING = """
const found = [];
(function walk(node) {
  found.push(node);
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.children || []) walk(child);
})(document.documentElement);
"""


SMOOTHING = EVERYTHING + "return found.find(node => node.localName === 'tf-smoothing-input').weight;"
# Those of the curves in each chart.
COLOURS = (
    EVERYTHING
    + """
return found.filter(node => node.localName === arguments[0]).map(card => {
  const colours = new Set();
  (function walk(node) {
    if (node.localName === 'path' && getComputedStyle(node).fill === 'none' && node.getTotalLength() > 50)
      colours.add(getComputedStyle(node).stroke);
    if (node.shadowRoot) walk(node.shadowRoot);
    for (const child of node.children || []) walk(child);
  })(card);
  return [...colours];
});
"""
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,800",
        f"--user-data-dir={tmp_path / 'browser'}",
    ):  # fmt: skip
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def dashboard(folder: Path) -> Iterator[str]:
    """Start `cnnlab dashboard` in a process of its own; yield its address; end it as Ctrl-C does."""
    code = "import sys; from cnnlab.cli import app; sys.argv[0] = 'cnnlab'; app()"
    command = [sys.executable, "-c", code, "dashboard", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[0]
            assert address.startswith("http://127.0.0.1:")
            yield address
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130


def until(what: str, seconds: float, holds: Callable[[], Any]) -> Any:
    """Wait until something holds, and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.5)
    raise AssertionError(f"after {seconds} s: {what}")


def text(browser: Any) -> str:
    return browser.execute_script(
        EVERYTHING + "return found.map(n => n.shadowRoot ? '' : (n.innerText || '')).join('\\n');"
    )


def curves(browser: Any, card: str) -> list[int]:
    """Count the curves in each chart, `card` being the charts' element, in the order of the page."""
    return browser.execute_script(
        EVERYTHING
        + """
        return found.filter(node => node.localName === arguments[0]).map(card => {
          let curves = 0;
          (function walk(node) {
            const drawn = node.localName === 'path' && getComputedStyle(node).fill === 'none';
            if (drawn && node.getTotalLength() > 50) curves += 1;
            if (node.shadowRoot) walk(node.shadowRoot);
            for (const child of node.children || []) walk(child);
          })(card);
          return curves;
        });
        """,
        card,
    )


def pictures(browser: Any) -> int:
    """Count the pictures of TensorBoard's that are loaded and shown."""
    return browser.execute_script(
        EVERYTHING
        + """
        return found.filter(node => node.localName === 'img' && node.src.includes('individualImage')
                                    && node.naturalWidth > 100 && node.offsetWidth > 50).length;
        """
    )


def keep(browser: Any, name: str) -> None:
    folder = os.environ.get("CNNLAB_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture
def outputs(train: Train, tmp_path: Path) -> Path:
    """A finished run and a finished sweep."""
    folder = tmp_path / "outputs"
    train("trainer.max_epochs=3", folder=folder / "run", figures=True)
    return folder


def test_a_run_opens_on_training_and_validation_in_one_chart(outputs: Path, browser: Any):
    with dashboard(outputs / "run") as address:
        browser.get(address)
        # Nothing is clicked: two curves of loss, two of accuracy, then loss of every step, rate and speed.
        charts = until("five charts with their curves", 60, lambda: complete(curves(browser, CUSTOM), [2, 2, 1, 1, 1]))
        assert len(charts) == 5
        # As the curves are, training and validation in two colours, each named.
        assert browser.execute_script(SMOOTHING) == 0
        assert all(len(colours) == 2 for colours in browser.execute_script(COLOURS, CUSTOM)[:2])
        until("names of the curves", 30, lambda: {"train/loss_epoch", "val/loss"} <= set(text(browser).split()))
        keep(browser, "dashboard")
        browser.get(f"{address}#images")
        until("pictures are shown", 60, lambda: pictures(browser) >= 3)
        keep(browser, "dashboard_images")
        browser.get(f"{address}#pr_curves")
        until("curves of precision and recall", 60, lambda: complete(curves(browser, "tf-pr-curve-card"), [1, 1]))
        browser.get(f"{address}#text")
        until("the run's summary", 60, lambda: "test/accuracy" in text(browser) and "optimizer.lr" in text(browser))
        # A card is drawn once it is scrolled to, and its title stands in two parts.
        browser.get(f"{address}?tagFilter=loss_epoch#timeseries")
        title = "return document.querySelector('scalar-card [title=\"train/loss_epoch\"]') !== null"
        until("Time Series has a chart", 60, lambda: browser.execute_script(title))
        cards = "return document.querySelectorAll('card-view').length"
        assert browser.execute_script(cards) > 15, "not those of the first two groups alone"


def test_a_sweep_shows_its_trials_side_by_side(small: list[str], tmp_path: Path, browser: Any):
    folder = tmp_path / "sweep"
    trained = run_process(
        "-m", *small, "optimizer.lr=0.02,0.05", "seed=0,1", f"hydra.sweep.dir='{folder}'", "~callbacks.figures"
    )
    assert trained.returncode == 0, trained.stderr
    with dashboard(folder) as address:
        browser.get(address)
        until("two curves a trial", 60, lambda: complete(curves(browser, CUSTOM), [8, 8]))
        for colours in browser.execute_script(COLOURS, CUSTOM)[:2]:
            parts = [tuple(map(int, re.findall(r"\d+", colour))) for colour in colours]
            assert len(parts) == 8, "of four runs, each with its two"
            assert min(math.dist(*pair) for pair in combinations(parts, 2)) > 40
        keep(browser, "dashboard_sweep")
        browser.get(f"{address}#hparams")
        table = until(
            "HParams", 60, lambda: "optimizer.lr" in (found := text(browser)) and "test/accuracy" in found and found
        )
        assert "0.05" in table
        keep(browser, "dashboard_hparams")


def complete(found: list[int], least: list[int]) -> list[int]:
    """Return the counts if they are at least these, else nothing."""
    enough = len(found) >= len(least) and all(count >= wanted for count, wanted in zip(found, least, strict=False))
    return found if enough else []


# What a page must not do at any width: scroll sideways, let text run into text, draw beyond a chart, be hard to read.
FAULTS = """
const faults = [], wide = document.documentElement.clientWidth;
const length = document.documentElement.scrollWidth;
if (length > wide) faults.push(`the page is ${length} wide`);
const overlap = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
                          && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
for (const chart of document.querySelectorAll('.chart svg[viewBox]:not([aria-hidden])')) {
  const box = chart.getBoundingClientRect(), texts = [...chart.querySelectorAll('text')];
  for (const [index, text] of texts.entries()) {
    const own = text.getBoundingClientRect();
    if (own.left < box.left - 1 || own.right > box.right + 1) faults.push(`beyond its chart: ${text.textContent}`);
    for (const other of texts.slice(index + 1))
      if (overlap(own, other.getBoundingClientRect())) faults.push(`${text.textContent} on ${other.textContent}`);
  }
  for (const line of chart.querySelectorAll('polyline')) {
    for (const {x, y} of line.points)
      if (x < 50 || x > 388 || y < 10 || y > 192) faults.push(`${x},${y} is off the axes`);
  }
}
const brightness = colour => {
  const [r, g, b] = colour.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
// What lies behind an element: its own ground over those of the elements around it, which may be transparent.
const behind = element => {
  const parts = getComputedStyle(element).backgroundColor.match(/[\\d.]+/g).map(Number), share = parts[3] ?? 1;
  if (share == 1) return parts;
  const ground = element.parentElement ? behind(element.parentElement) : [255, 255, 255];
  return [0, 1, 2].map(place => share * parts[place] + (1 - share) * ground[place]);
};
const words = 'h1, h2, p, a, dt, dd, th, td, figcaption, .numbers strong, .numbers span';
for (const element of document.querySelectorAll(words)) {
  const box = element.getBoundingClientRect();
  if (box.width && !element.closest('.wide, details') && (box.left < -1 || box.right > wide + 1))
    faults.push(`beyond the page: ${element.textContent.slice(0, 40)}`);
  const ink = getComputedStyle(element).color.match(/[\\d.]+/g).map(Number);
  const [low, high] = [ink, behind(element)].map(brightness).sort((a, b) => a - b);
  if ((high + 0.05) / (low + 0.05) < 4.5) faults.push(`hard to read: ${element.textContent.slice(0, 40)}`);
}
return [...new Set(faults)];
"""
NAMES = {
    2: ["猫の写真", "собака"],
    10: [f"Golden_Retriever_puppy_outside_number_{number}" for number in range(9)] + ["قطة"],
    100: [f"{'猫犬鳥'[number % 3]} class {number}" for number in range(100)],
}


@pytest.mark.parametrize("classes", NAMES)
def test_a_report_fits_every_screen_in_light_and_dark(classes: int, train: Train, tmp_path: Path, browser: Any):
    data = tmp_path / "named.npz"
    images, _ = drawn(400, min(classes, 16), 0)
    labels = np.arange(400) % classes
    np.savez(data, X_train=images, y_train=labels, X_test=images[::2], y_test=labels[::2], classes=NAMES[classes])
    folder = train(f"data.path='{data}'", "data.val_size=0.25", folder=tmp_path / f"classes_{classes}")
    page = report_run(str(folder)).path
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        for width in (390, 768, 1280):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.get(page.as_uri())
            assert browser.execute_script(FAULTS) == [], (scheme, width)
            keep(browser, f"report_{classes}_{width}_{scheme}")
