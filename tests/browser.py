"""Headless Chromium, controlled by its own protocol over a pipe, without a driver or an open port.

Console messages, exceptions and requested addresses of a page are recorded, so that tests can check that there are
none.
"""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = (
    "--headless", "--remote-debugging-pipe", "--no-sandbox", "--no-first-run", "--disable-quic", "--mute-audio",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--force-device-scale-factor=1", "--hide-scrollbars",
)  # fmt: skip
_SOFTWARE_WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
_NO_WEBGL = ("--disable-gpu", "--disable-webgl", "--disable-webgl2", "--disable-3d-apis")
_KEYS = {"Enter": 13, " ": 32, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Browser:
    """One window. `webgl=False` disables 3-D graphics, as on an old machine or by a hospital's policy."""

    def __init__(self, profile: Path, *, webgl: bool = True, width: int = 1300, height: int = 1000, dark: bool = False):
        program = next((path for path in map(shutil.which, _PROGRAMS) if path), None)
        if program is None:
            pytest.skip(f"no browser here: none of {', '.join(_PROGRAMS)} is installed")
        self.console: list[str] = []
        self.requests: list[str] = []
        self._number = 0
        (read_here, write_there), (read_there, write_here) = os.pipe(), os.pipe()
        # The pipes of the protocol must be descriptors 3 and 4: copies with high numbers are not overwritten before.
        there = [fcntl.fcntl(end, fcntl.F_DUPFD, 100) for end in (read_there, write_there)]

        def connect() -> None:
            os.dup2(there[0], 3)
            os.dup2(there[1], 4)

        self._process = subprocess.Popen(
            [program, *_OPTIONS, *(_SOFTWARE_WEBGL if webgl else _NO_WEBGL), f"--window-size={width},{height}",
             f"--user-data-dir={profile}", "about:blank"],
            close_fds=False, preexec_fn=connect, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (read_there, write_there, *there):
            os.close(end)
        self._from, self._to, self._rest = read_here, write_here, b""
        targets = self._call("Target.getTargets", session=False)["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self._call("Target.attachToTarget", session=False, targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = "dark" if dark else "light"
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._from)
        os.close(self._to)

    def open(self, page: Path) -> None:
        """Open a page anew, and forget the messages and requests of the one before."""
        self._call("Page.navigate", url="about:blank")
        self.wait_for("location.href === 'about:blank' && document.readyState === 'complete'")
        self.console.clear()
        self.requests.clear()
        self._call("Page.navigate", url=page.as_uri())
        self.wait_for("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression; a promise is awaited."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, condition: str, *, seconds: float = 90) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"waited {seconds} s for {condition}; console: {self.console}"
            time.sleep(0.1)

    def wait_for_drawing(self) -> None:
        """Wait until changes are laid out and drawn, which is one frame later."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def click(self, selector: str) -> None:
        """Click on the centre of an element."""
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        x, y, width, height = self.box(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self._call(
                "Input.dispatchMouseEvent", type=kind, x=x + width / 2, y=y + height / 2, button="left", clickCount=1
            )

    def press(self, key: str) -> None:
        """Press a key; it goes to the element with the focus."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        about = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": _KEYS[key]}
        self._call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **about)
        self._call("Input.dispatchKeyEvent", type="keyUp", **about)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Return left, top, width and height of an element in the window."""
        found = self.run(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return [b.left, b.top, b.width, b.height]; })()"
        )
        left, top, width, height = found
        return left, top, width, height

    def picture(self, path: Path, selector: str | None = None, *, whole: bool = False) -> np.ndarray:
        """Save the window, or one element of it, as PNG; return it as (H, W, 3) uint8."""
        options: dict[str, Any] = {}
        if selector is not None:
            self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
            x, y, width, height = self.box(selector)
            scrolled = self.run("[scrollX, scrollY]")
            options["clip"] = {
                "x": x + scrolled[0], "y": y + scrolled[1], "width": width, "height": height, "scale": 1
            }  # fmt: skip
        self.wait_for_drawing()
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=whole, **options)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))

    def tree(self) -> list[dict[str, Any]]:
        """Return role and name of every node of the accessibility tree that is not ignored."""
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        return [
            {"role": node["role"]["value"], "name": node.get("name", {}).get("value", "")}
            for node in nodes
            if not node["ignored"]
        ]

    def _call(self, method: str, *, session: bool = True, **parameters: object) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            block = os.read(self._from, 1 << 16)
            assert block, "the browser has ended"
            self._rest += block
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        about = event.get("params", {})
        if event.get("method") == "Runtime.consoleAPICalled":
            text = " ".join(str(argument.get("value", "")) for argument in about["args"])
            self.console.append(f"{about['type']}: {text}")
        elif event.get("method") == "Runtime.exceptionThrown":
            self.console.append(f"exception: {about['exceptionDetails']}")
        elif event.get("method") == "Log.entryAdded":
            self.console.append(f"{about['entry']['level']}: {about['entry']['text']}")
        elif event.get("method") == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
