"""A headless Chromium for tests, driven through its DevTools protocol.

with chromium() as browser, browser.page(url) as page:
    page.wait_until("document.title === 'azureml-fe'")
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

from tests.processes import TIMEOUT_SECONDS, wait_until

PROGRAM = shutil.which("chromium")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0"),
)
_MAX_MESSAGE_BYTES = 64 * 2**20


class Page:
    """One tab."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._last_id = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._last_id += 1
        self._connection.send(json.dumps({"id": self._last_id, "method": method, "params": parameters}))
        while True:
            reply = json.loads(self._connection.recv(TIMEOUT_SECONDS))
            if reply.get("id") == self._last_id:
                assert "error" not in reply, reply
                result: dict[str, Any] = reply["result"]
                return result

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        wait_until(lambda: self.evaluate(expression), expression)

    def size(self, width: int, height: int, *, dark: bool = False, mobile: bool = False) -> None:
        """Emulate a screen of this size and a colour scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """Write a screenshot as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


class Browser:
    """A running Chromium."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"

    @contextlib.contextmanager
    def page(self, url: str) -> Iterator[Page]:
        """Open a URL in a new tab."""
        request = urllib.request.Request(f"{self._base}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            target = json.load(response)["webSocketDebuggerUrl"]
        with connect(target, max_size=_MAX_MESSAGE_BYTES) as connection:
            page = Page(connection)
            page.call("Page.navigate", url=url)
            yield page


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run a browser with a new profile."""
    assert PROGRAM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [PROGRAM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                port = Path(profile, "DevToolsActivePort")
                wait_until(lambda: port.exists() and port.read_text().count("\n"), "start of Chromium")
                yield Browser(int(port.read_text().splitlines()[0]))
            finally:
                process.terminate()
                process.wait(TIMEOUT_SECONDS)
