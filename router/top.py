"""`azureml-fe top`: a router's status, live in a terminal.

Lives here: asking for `/status.json` once a second, and what of it a terminal of this size shows (`Screen`, no I/O).
Must not live here: what the numbers mean (`overview.document`).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import termios
import time
import tty
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, TextIO

Status = dict[str, Any]
Fetch = Callable[[], Status]

ORDERS = ("name", "queued", "utilization", "requests")
_SECONDS = 1.0
_TIMEOUT_SECONDS = 5.0
_MOST_BYTES = 64 * 2**20
_COLUMNS, _LINES = 80, 24  # of a terminal that does not tell
_NAME = 28
_CELLS = 24
_SHADES = " ▁▂▃▄▅▆▇█"
_DECISIONS = 4
_PROBLEMS = 3

# ECMA-48: the other screen, no cursor; to the top; clear to the end of line, of screen.
_BEGIN, _END = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"
_STYLES = {"bold": "1", "dim": "2", "good": "32", "warn": "33", "bad": "31", "head": "7"}


class NoStatus(OSError):
    """The router cannot be asked; `str()` is one line."""


def from_url(url: str) -> Fetch:
    """Asks the admin port at this address."""
    address = url.rstrip("/")
    if not address.endswith("/status.json"):
        address += "/status.json"

    def fetch() -> Status:
        try:
            with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310 (checked by cli)
                return parse(answer.read(_MOST_BYTES), address)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise NoStatus(f"{address}: {getattr(reason, 'strerror', None) or reason}") from error

    return fetch


def from_cluster(look: Callable[[], Status]) -> Fetch:
    """Asks by way of a cluster's API server."""

    def fetch() -> Status:
        try:
            return look()
        except OSError as error:
            raise NoStatus(str(error)) from error

    return fetch


def parse(body: bytes, address: str) -> Status:
    """The document. Raises `NoStatus` for something else."""
    try:
        status = json.loads(body)
        if isinstance(status, dict) and isinstance(status.get("services"), list) and "totals" in status:
            return status
    except ValueError:
        pass
    raise NoStatus(f"{address}: this is not the status of a router")


class Screen:
    """Turns a status into lines. `coloured` for a terminal that shows colours."""

    def __init__(self, *, coloured: bool) -> None:
        self._coloured = coloured

    def lines(self, status: Status, width: int, height: int, order: str) -> list[str]:
        """The lines that fit; a height of 0 is one without an end."""
        head = self._head(status, width)
        foot = self._foot(status, width)
        rows = [row for service in _sorted(status["services"], order) for row in self._service(service, width)]
        room = max(1, height - len(head) - len(foot)) if height else len(rows)
        if len(rows) > room:
            left = len(rows) - room + 1
            rows = [*rows[: room - 1], self._style("dim", f"  ... and {left} more"[:width])]
        return [*head, *rows, *foot]

    def _head(self, status: Status, width: int) -> list[str]:
        router, totals = status["router"], status["totals"]
        title = f"azureml-fe {router['version']}  {router['pod']}" + ("  leader" if router["leads"] else "")
        numbers = (
            f"{totals['requests_per_second']:g} requests/s  {totals['in_flight']} in flight  "
            f"{totals['queued']} queued  {totals['refused_per_second']:g} refused/s  "
            f"{totals['replicas_ready']} replicas ready  {totals['services']} services"
        )
        columns = f"{'SERVICE':{_NAME}} {'REQ/S':>8} {'IN FLIGHT':>11} {'QUEUED':>6} {'USED':>5} {'WANT':>5}  REPLICAS"
        lines = [self._style("bold", _fit(title, width)), _fit(numbers, width)]
        lines += [self._style("bad", _fit(problem, width)) for problem in status.get("problems", ())[:_PROBLEMS]]
        if not router["config_in_force"] and status["config_errors"]:
            lines.append(self._style("bad", _fit(f"refused settings: {status['config_errors'][0]['error']}", width)))
        return [*lines, self._style("head", _fit(columns, width).ljust(width))]

    def _service(self, service: dict[str, Any], width: int) -> Iterator[str]:
        for version in service["versions"]:
            only = len(service["versions"]) == 1 and version["name"] == "default"
            name = _fit(service["name"] if only else f"{service['name']}/{version['name']}", _NAME)
            slots = "" if version["slots"] is None else f"/{version['slots']}"
            used = "" if version["utilization"] is None else f"{version['utilization']:.0%}"
            numbers = (
                f"{name:{_NAME}} {version['requests_per_second']:>8g} {str(version['in_flight']) + slots:>11} "
                f"{version['queued']:>6} {used:>5} {version['desired']:>5}  "
            )
            room = max(0, min(_CELLS, width - len(numbers)))
            text = _fit(numbers, width) + _cells(version["replicas"], room)
            yield self._style(_mark(version), text)

    def _foot(self, status: Status, width: int) -> list[str]:
        lines = [self._style("dim", "")]
        for decision in status["decisions"][:_DECISIONS]:
            clock = time.strftime("%H:%M:%S", time.localtime(decision["time"]))
            name = decision["service"] + ("" if decision["version"] == "default" else "/" + decision["version"])
            lines.append(_fit(f"{clock} {name} to {decision['desired']}: {decision['reason']}", width))
        workers = [f"{worker['name']} {worker['state']} {worker['in_flight']}" for worker in status["workers"]]
        lines.append(_fit("workers: " + (", ".join(workers) or "none"), width))
        if status["peers"]:
            peers = [f"{peer['name']} {peer['standing']} ({peer['services_owned']} owned)" for peer in status["peers"]]
            trouble = any(peer["standing"] != "live" for peer in status["peers"])
            lines.append(self._style("warn" if trouble else "", _fit("pods: " + ", ".join(peers), width)))
        return lines

    def _style(self, style: str, text: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._coloured and style else text


def _sorted(services: list[dict[str, Any]], order: str) -> list[dict[str, Any]]:
    keys: dict[str, Callable[[dict[str, Any]], float]] = {
        "queued": lambda service: sum(version["queued"] for version in service["versions"]),
        "requests": lambda service: sum(version["requests_per_second"] for version in service["versions"]),
        "utilization": lambda service: max(version["utilization"] or 0 for version in service["versions"]),
    }
    by_name = sorted(services, key=lambda service: str(service["name"]))
    return sorted(by_name, key=keys[order], reverse=True) if order in keys else by_name


def _mark(version: dict[str, Any]) -> str:
    if version["refused_per_second"] or not version["states"].get("ready"):
        return "bad"
    return "warn" if version["queued"] else ""


def _cells(replicas: list[dict[str, Any]], room: int) -> str:
    """One character for each replica: how full it is, or what it does instead."""
    cells = []
    for replica in replicas:
        if replica["state"] == "ready":
            limit = replica["slots"] or max(replica["in_flight"], 1)
            share = min(1.0, replica["in_flight"] / limit)
            cells.append(_SHADES[round(share * (len(_SHADES) - 1))] if replica["in_flight"] else "·")
        else:
            cells.append({"starting": "+", "draining": "-"}.get(replica["state"], "?"))
    text = "".join(cells)
    return text if len(text) <= room else text[: max(0, room - 1)] + "…"


def _fit(text: str, width: int) -> str:
    """Cut, and without what would steer the terminal."""
    return "".join(each if each.isprintable() else "?" for each in text)[:width]


# The terminal.


def run_top(fetch: Fetch, out: TextIO, *, once: bool) -> int:
    """Show until the user presses q or Ctrl-C; once, without an end, where nobody looks. Returns the exit code.

    Raises `NoStatus` if the first answer does not come.
    """
    status = fetch()
    if once or not out.isatty() or not sys.stdin.isatty():
        for line in Screen(coloured=False).lines(status, *_size(out, endless=True), ORDERS[0]):
            print(line.rstrip(), file=out)
        return 0
    with _terminal(out):
        _live(fetch, status, out)
    return 0


def _live(fetch: Fetch, status: Status, out: TextIO) -> None:
    screen = Screen(coloured="NO_COLOR" not in os.environ)
    order = 0
    trouble = ""
    while True:
        width, height = _size(out)
        lines = screen.lines(status, width, height - 1, ORDERS[order])
        lines.append(_fit(trouble or f"q: quit   o: order (by {ORDERS[order]})", width))
        out.write(_HOME + (_CLEAR_LINE + "\r\n").join(lines) + _CLEAR_LINE + _CLEAR_REST)
        out.flush()
        key = _key(_SECONDS)
        if key in ("q", "\x03", "\x04"):
            return
        if key == "o":
            order = (order + 1) % len(ORDERS)
        try:
            status = fetch()
            trouble = ""
        except NoStatus as error:
            trouble = f"no answer: {error}"


def _key(seconds: float) -> str:
    """The key that is pressed within this time, if any."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return os.read(sys.stdin.fileno(), 1).decode("latin-1") if ready else ""


def _size(out: TextIO, *, endless: bool = False) -> tuple[int, int]:
    try:
        size = os.get_terminal_size(out.fileno())
        columns, lines = size.columns or _COLUMNS, size.lines or _LINES
    except (OSError, ValueError):
        columns, lines = _COLUMNS + 40, _LINES
    return columns, 0 if endless else lines


@contextlib.contextmanager
def _terminal(out: TextIO) -> Iterator[None]:
    """Another screen, and keys as they are pressed; all as it was afterwards."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        out.write(_BEGIN)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        out.write(_END)
        out.flush()
