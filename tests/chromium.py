"""A headless Chromium for tests, driven through its DevTools protocol.

with chromium() as browser, browser.page(url) as page:
    page.until("document.title === 'azureml-fe'")
"""

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.processes import PATIENCE_SECONDS, until

PROGRAM = shutil.which("chromium")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0"),
)
_MOST_BYTES = 64 * 2**20


class Page:
    """One tab."""

    def __init__(self, line: ClientConnection) -> None:
        self._line = line
        self._last = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One call of the protocol; its result."""
        self._last += 1
        self._line.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._line.recv(PATIENCE_SECONDS))
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def evaluate(self, expression: str) -> Any:
        """What an expression of JavaScript comes to."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression holds."""
        until(lambda: self.evaluate(expression), expression)

    def size(self, width: int, height: int, *, dark: bool = False, mobile: bool = False) -> None:
        """Have a screen of this size, and this taste in colours."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


class Browser:
    """A running Chromium."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"

    @contextlib.contextmanager
    def page(self, url: str) -> Iterator[Page]:
        """Open an address in a tab of its own."""
        asked = urllib.request.Request(f"{self._base}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(asked, timeout=PATIENCE_SECONDS) as answer:
            target = json.load(answer)["webSocketDebuggerUrl"]
        with connect(target, max_size=_MOST_BYTES) as line:
            page = Page(line)
            page.call("Page.navigate", url=url)
            yield page


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with a profile of its own."""
    assert PROGRAM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [PROGRAM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                port = Path(profile, "DevToolsActivePort")
                until(lambda: port.exists() and port.read_text().count("\n"), "start of Chromium")
                yield Browser(int(port.read_text().splitlines()[0]))
            finally:
                process.terminate()
                process.wait(PATIENCE_SECONDS)
