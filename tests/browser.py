"""A headless Chromium that tests look at pages with; it reaches no network.

It is spoken to by its DevTools protocol over two pipes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 120  # that a browser lives at the most
READ, WRITE = 3, 4  # descriptors that Chromium reads commands from, and writes to
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--disable-extensions", "--disable-background-networking", "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe",
)  # fmt: skip


def program() -> str | None:
    """Chromium, if it is installed."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Page:
    """A page of the browser.

    Attributes:
      trouble: errors and warnings of its console, exceptions, and requests but for the page itself.
    """

    def __init__(self, commands: Any, answers: Any):
        self._commands, self._answers = commands, answers
        self._number, self._session = 0, ""
        self.trouble: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser has gone"
            text += byte
        answer = json.loads(text)
        self._note(answer.get("method", ""), answer.get("params", {}))
        return answer

    def _note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.trouble.append(told["exceptionDetails"]["text"])
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.trouble.append(str(told["args"]))
        elif event == "Log.entryAdded":
            self.trouble.append(told["entry"]["text"])
        elif event == "Network.requestWillBeSent" and told.get("type") != "Document":
            self.trouble.append(told["request"]["url"])

    def open(self, path: Path, *, width: int = 1100, height: int = 900, dark: bool = False) -> None:
        """Shows a file."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[feature])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url=path.resolve().as_uri())
        self("new Promise(done => document.readyState === 'complete' ? done() : "
             "addEventListener('load', () => done()))")  # fmt: skip

    def __call__(self, script: str) -> Any:
        """The value of an expression, awaited."""
        got = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def point(self, x: float, y: float) -> None:
        """Moves the mouse."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)


@contextmanager
def browser() -> Iterator[Page]:
    """A page of a browser of its own."""
    found = program()
    assert found is not None
    (their_read, commands), (answers, their_write) = os.pipe(), os.pipe()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        open(commands, "wb") as to_it,
        open(answers, "rb") as from_it,
    ):
        # Bash puts the pipes where Chromium looks for them.
        arranged = f'exec "$@" {READ}<&{their_read} {WRITE}>&{their_write}'
        process = subprocess.Popen(
            ["bash", "-c", arranged, "bash", found, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(their_read, their_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(their_read)
        os.close(their_write)
        watch = threading.Timer(SECONDS, process.kill)  # whoever reads from it then goes on
        watch.start()
        try:
            yield Page(to_it, from_it)
        finally:
            watch.cancel()
            process.kill()
            process.wait()
