"""`azureml-fe top`: shows the live status of a router in a terminal.

Contains: fetching `/status.json` once a second, reading keys, and drawing. Does not contain: what is shown
(`top_view`), computing the values (`admin.status`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import sys
import termios
import time
import tty
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, TextIO
from urllib.parse import urlsplit, urlunsplit

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from router.cli.top_view import Status, TopView
from router.config.listener_settings import is_loopback
from router.net.host_check import COMMAND_HEADER

Fetch = Callable[[], Status]

_UPDATE_SECONDS = 1.0
_TIMEOUT_SECONDS = 5.0
_MAX_BYTES = 64 * 2**20
_REFUSED_ADVICE = '; is a router running? give the URL that it prints as "status page"'

_SPECIAL_KEYS = {
    "\x1b[A": "up", "\x1bOA": "up", "\x1b[B": "down", "\x1bOB": "down", "\x1b[5~": "pageup", "\x1b[6~": "pagedown",
    "\x1b[H": "home", "\x1bOH": "home", "\x1b[1~": "home", "\x1b[F": "end", "\x1bOF": "end", "\x1b[4~": "end",
    "\x1b": "esc", "\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace",
    "\x03": "ctrl-c", "\x04": "ctrl-d",
}  # fmt: skip
_KEY = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Za-z]|.", re.DOTALL)


class StatusUnavailable(OSError):
    """The status cannot be fetched. `str()` is one line."""


def status_url(url: str) -> str:
    """Return the URL of the status document, from that of the admin port, of the status page or of the document."""
    scheme, netloc, path, _, _ = urlsplit(url)
    path = path.rstrip("/").removesuffix("/status.json").removesuffix("/status")
    return urlunsplit((scheme, netloc, path + "/status.json", "", ""))


def from_url(url: str) -> Fetch:
    """Return a function that fetches the status from the router with this URL."""
    document_url = status_url(url)
    request = urllib.request.Request(document_url, headers={COMMAND_HEADER: "top"})  # noqa: S310 (checked by the parser)
    # `http_proxy` of the environment is for other machines.
    proxies: dict[str, str] | None = {} if is_loopback(urlsplit(document_url).hostname or "") else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))

    def fetch() -> Status:
        try:
            with opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
                return parse(response.read(_MAX_BYTES), document_url)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            advice = _REFUSED_ADVICE if isinstance(reason, ConnectionRefusedError) else ""
            raise StatusUnavailable(f"{document_url}: {getattr(reason, 'strerror', None) or reason}{advice}") from error

    return fetch


def from_cluster(fetch_status: Callable[[], Status]) -> Fetch:
    """Return a function that fetches the status through a cluster's API server."""

    def fetch() -> Status:
        try:
            return fetch_status()
        except OSError as error:
            raise StatusUnavailable(str(error)) from error

    return fetch


def parse(body: bytes, url: str) -> Status:
    """Return the status document in `body`. Raises StatusUnavailable if there is none."""
    try:
        status: Any = json.loads(body)
        if isinstance(status, dict) and isinstance(status.get("services"), list) and "totals" in status:
            return status
    except ValueError:
        pass
    raise StatusUnavailable(f"{url}: this is not the status of a router")


def run_top(fetch: Fetch, out: TextIO, *, once: bool, as_json: bool = False) -> int:
    """Show the status until the user presses q or Ctrl-C. Return the exit code.

    With `once`, or without a terminal, print the complete status once; with `as_json`, print the document. Lines are
    cut to the width of the terminal or to the environment variable COLUMNS, and complete without both. Raises
    StatusUnavailable if the first fetch fails.
    """
    status = fetch()
    if as_json:
        print(json.dumps(status), file=out)
        return 0
    if once or not out.isatty() or not sys.stdin.isatty():
        has_width = out.isatty() or os.environ.get("COLUMNS", "").isdecimal()
        width = Console(file=out).width if has_width else 0
        for line in TopView().lines(status, width, 0):
            print(line.plain.rstrip(), file=out)
        return 0
    console = Console(file=out)
    with (
        contextlib.suppress(KeyboardInterrupt),  # Ctrl-C is the usual end
        _single_keys(),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        _follow(fetch, status, console, live)
    return 0


def _follow(fetch: Fetch, status: Status, console: Console, live: Live) -> None:
    view = TopView()
    next_fetch = time.monotonic() + _UPDATE_SECONDS
    while True:
        lines = view.lines(status, console.width, console.height)
        live.update(Group(Text("\n").join(lines)), refresh=True)
        for key in _read_keys(max(0.0, next_fetch - time.monotonic())):
            if not view.on_key(key):
                return
        if time.monotonic() >= next_fetch:
            try:
                status = fetch()
                view.error = ""
            except StatusUnavailable as error:
                view.error = f"no response: {error}"
            next_fetch = time.monotonic() + _UPDATE_SECONDS


def keys_of(text: str) -> list[str]:
    """Return the keys in what a terminal has sent: characters, and names such as "up" of special keys."""
    return [_SPECIAL_KEYS.get(key, key if len(key) == 1 else "") for key in _KEY.findall(text)]


def _read_keys(seconds: float) -> list[str]:
    """Wait for keys for at most `seconds`. Return them; none if no key was pressed."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    if not ready:
        return []
    data = os.read(sys.stdin.fileno(), 1024)
    return keys_of(data.decode(errors="replace")) if data else ["ctrl-d"]  # no data: the terminal was closed


@contextlib.contextmanager
def _single_keys() -> Iterator[None]:
    """Let the terminal pass on each key at once and without showing it; restore it afterwards."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
