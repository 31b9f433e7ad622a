# SPDX-License-Identifier: Apache-2.0
"""report.html in a real browser: Chromium without a window, spoken to over a pair of pipes.

Its DevTools protocol needs nothing that Python has not: messages are JSON, a NUL after each.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from prunec.validators.html import html
from prunec.validators.results import Report

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
)


PROGRAM = next((path for name in _NAMES if (path := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(not PROGRAM, reason="neither chromium nor google-chrome is on PATH")

#: What a browser knows of a page when it has laid it out. Contrast as WCAG 2 reckons it.
_PROBE = """
(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => {
    const linear = numbers(colour).slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((numbers(colour)[3] ?? 1) > 0) return colour;
    }
  };
  const contrast = (element) => {
    const of = luminance(getComputedStyle(element).color), on = luminance(ground(element));
    return (Math.max(of, on) + 0.05) / (Math.min(of, on) + 0.05);
  };
  const written = [...document.querySelectorAll("body *")].filter((element) =>
    [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  return {
    scrollWidth: document.documentElement.scrollWidth,
    width: innerWidth,
    images: [...document.images].map((image) => image.complete && image.naturalWidth),
    shown: [...document.images].map((image) => image.currentSrc),
    paper: luminance(getComputedStyle(document.body).backgroundColor),
    verdicts: [...document.querySelectorAll(".verdict")].map((e) => getComputedStyle(e).color),
    contrasts: written.map((element) => [element.outerHTML.slice(0, 80), contrast(element)]),
    smallest: Math.min(...written.map((e) => parseFloat(getComputedStyle(e).fontSize))),
  };
})()
"""


class Browser:
    """One tab. `events` holds all that the page has told since it was opened."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO) -> None:
        self._requests, self._answers = requests, answers
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, url: str, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Load a page at a size in CSS pixels; returns when all that it shows is there."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2,
            mobile=width < 600,
        )
        self.set_medium("screen", dark=dark)
        self.events.clear()
        self._call("Page.navigate", url=url)
        while not any(name == "Page.loadEventFired" for name, _ in self.events):
            self._receive()

    def set_medium(self, medium: str, *, dark: bool) -> None:
        """`screen` or `print`, and what the reader's system prefers."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media=medium, features=[scheme])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, which may be a promise."""
        answer = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, *, whole: bool = False) -> bytes:
        """A PNG of what is in sight, or of the whole page."""
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])

    def pdf(self) -> bytes:
        """The page on A4 paper."""
        answer = self._call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(answer["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._requests.write(json.dumps(message).encode() + b"\0")
        self._requests.flush()
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._answers.fileno(), 1 << 16)
            assert data, "the browser has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append((message["method"], message.get("params", {})))
        return message


@contextmanager
def _started(program: str, profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile, which is ended in the end."""
    reads, requests = os.pipe()
    answers, writes = os.pipe()
    # It reads from 3 and writes to 4. Ours are moved away first, so that none is in the way.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (reads, writes)]
    for end in (reads, writes):
        os.close(end)
    process = os.posix_spawn(
        program,
        [program, *_SWITCHES, f"--user-data-dir={profile}"],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, ends[0], 3),
            (os.POSIX_SPAWN_DUP2, ends[1], 4),
        ],
    )
    for end in ends:
        os.close(end)
    try:
        with os.fdopen(requests, "wb") as to, os.fdopen(answers, "rb") as back:
            yield Browser(to, back)
    finally:
        os.kill(process, signal.SIGTERM)
        os.waitpid(process, 0)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM
    with _started(PROGRAM, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def page(full_report: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html(full_report), encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_is_whole_and_legible(browser: Browser, page: str, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    found = browser.evaluate(_PROBE)
    assert found["width"] == width
    assert found["scrollWidth"] <= width  # tables scroll inside their boxes, the page never
    assert len(found["images"]) == 7 and all(found["images"])
    assert found["paper"] < 0.05 if dark else found["paper"] > 0.9
    assert len(set(found["verdicts"])) == 3  # passed, failed, inconclusive
    illegible = [each for each in found["contrasts"] if each[1] < 4.5]
    assert not illegible
    assert found["smallest"] >= 12


def test_the_page_asks_for_nothing_and_complains_of_nothing(browser: Browser, page: str) -> None:
    browser.open(page, width=1280)
    asked = [
        event["request"]["url"]
        for name, event in browser.events
        if name == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] == [page]
    said = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    assert not [event for event in browser.events if event[0] in said]


def test_each_screen_gets_its_own_pictures_and_paper_the_light_ones(
    browser: Browser, page: str
) -> None:
    shown = {}
    for name, width, dark in (
        ("desk", 1280, False),
        ("night", 1280, True),
        ("phone", 390, False),
        ("phone at night", 390, True),
    ):
        browser.open(page, width=width, dark=dark)
        shown[name] = tuple(browser.evaluate(_PROBE)["shown"])
    assert len(set(shown.values())) == 4
    browser.open(page, width=1280, dark=True)
    browser.set_medium("print", dark=True)
    # The browser changes the pictures in its own time.
    deadline = time.monotonic() + 20
    while tuple((printed := browser.evaluate(_PROBE))["shown"]) != shown["desk"]:
        assert time.monotonic() < deadline
    assert printed["paper"] == 1
    assert not [each for each in printed["contrasts"] if each[1] < 4.5]
    assert browser.pdf().startswith(b"%PDF")


def test_hostile_names_run_and_load_nothing(
    browser: Browser, hostile_report: Report, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(html(hostile_report), encoding="utf-8")
    browser.open(path.as_uri(), width=1280)
    found = browser.evaluate(_PROBE)
    assert all(found["images"]) and found["scrollWidth"] <= 1280
    assert browser.evaluate("document.scripts.length") == 0
    assert browser.evaluate("document.title").endswith("prunec report")
    assert "[key]|" in browser.evaluate("document.querySelector('h1').innerText")
    asked = [
        e["request"]["url"] for name, e in browser.events if name == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    refused = ("Log.entryAdded", "Runtime.exceptionThrown", "Page.javascriptDialogOpening")
    assert not [event for event in browser.events if event[0] in refused]
