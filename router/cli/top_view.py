"""What `azureml-fe top` shows: columns, order, filter and scrolling, for a terminal of any size. No I/O, no clock.

Does not contain: the status (`admin.status`), the terminal (`top`).
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from router.model.problems import with_note

Status = dict[str, Any]
Version = dict[str, Any]

_MAX_CELLS = 24
_SHADES = " ▁▂▃▄▅▆▇█"
_MAX_DECISIONS = 4
_MAX_EJECTED = 3  # replicas of a version that are listed with the reason
_MAX_PROBLEMS = 3  # on a screen
_LINES_OF_PROBLEM = 2
_MIN_WRAPPED = 20
_MAX_SERVICES_OF_PROBLEM = 5  # that are named
_MIN_NAME, _MAX_NAME = 10, 40
_MIN_CELLS = 4
_LINES_OF_DETAILS = 15
"""Minimum height of a terminal in which problems, decisions, workers and pods are shown."""

_STYLES = {"bold": "bold", "dim": "dim", "good": "green", "warn": "yellow", "bad": "red", "head": "reverse"}


class _Column(NamedTuple):
    title: str
    width: int
    text: Callable[[Version], str]


def _ready_of_desired(version: Version) -> str:
    return f"{version['states'].get('ready', 0)}/{version['desired']}"


def _in_flight(version: Version) -> str:
    return f"{version['in_flight']}" + ("" if version["slots"] is None else f"/{version['slots']}")


def _used(version: Version) -> str:
    used = version["utilization"]  # queued requests count, so it may be above 1
    if used is None:
        return ""
    return f"{used:.0%}" if used <= 1.005 else "full"


_COLUMNS = (
    _Column("READY", 7, _ready_of_desired),
    _Column("REQ/S", 8, lambda version: f"{version['requests_per_second']:g}"),
    _Column("QUEUED", 6, lambda version: f"{version['queued']}"),
    _Column("USED", 5, _used),
    _Column("IN FLIGHT", 11, _in_flight),
    _Column("REFUSED/S", 9, lambda version: f"{version['refused_per_second']:g}"),
)
"""The columns after the name, the most important one first. A narrow terminal has the first ones."""

_WIDTH_AFTER_NAME = sum(column.width + 1 for column in _COLUMNS) + 2 + _MAX_CELLS
"""Width of all columns but the name, each preceded by a space, and of two spaces and the cells."""

_ORDERS: dict[str, Callable[[dict[str, Any]], float]] = {
    "queued": lambda service: sum(version["queued"] for version in service["versions"]),
    "utilization": lambda service: max(version["utilization"] or 0 for version in service["versions"]),
    "requests": lambda service: sum(version["requests_per_second"] for version in service["versions"]),
    "refused": lambda service: sum(version["refused_per_second"] for version in service["versions"]),
}
ORDERS = ("name", *_ORDERS)

_HELP = (
    "up, down, j, k     scroll by a line",
    "PgUp, PgDn, space  scroll by a page",
    "Home, End, g, G    first, last service",
    "/                  show only services whose name has a text; Enter: keep; Esc: all",
    "s                  sort by the next column; r: reverse",
    "?                  this help; any key: back",
    "q, Ctrl-C          quit",
    "",
    "READY     replicas that get requests, of those that are wanted",
    "USED      share of the slots in use",
    "IN FLIGHT requests at replicas, of the slots",
    "REPLICAS  load of each: · idle  █ full  + starting  - draining  ! ejected",
)

_STEPS = {"up": -1, "k": -1, "down": 1, "j": 1}
_PAGES = {"pageup": -1, "pagedown": 1, " ": 1}


@dataclass(slots=True)
class TopView:
    """The state of the view. `on_key` changes it."""

    order: int = 0
    is_reversed: bool = False
    filter: str = ""
    is_typing: bool = False
    """True while keys change the filter."""
    shows_help: bool = False
    first: int = 0
    """Number of the first visible line of services."""
    page: int = 1
    """Number of the visible lines of services at the last rendering."""
    error: str = ""
    """Why the status is not current; empty if it is."""

    def on_key(self, key: str) -> bool:
        """Apply a key: a character, or the name of a special key as in `keys_of`. Return False to quit."""
        if key in ("ctrl-c", "ctrl-d"):
            return False
        if self.is_typing:
            self._type(key)
        elif self.shows_help:
            self.shows_help = False
        elif key == "q":
            return False
        elif key in ("?", "h"):
            self.shows_help = True
        elif key == "/":
            self.is_typing, self.filter, self.first = True, "", 0
        elif key == "esc":
            self.filter, self.first = "", 0
        elif key in ("s", "o"):
            self.order, self.first = (self.order + 1) % len(ORDERS), 0
        elif key == "r":
            self.is_reversed, self.first = not self.is_reversed, 0
        elif key in ("home", "g"):
            self.first = 0
        elif key in ("end", "G"):
            self.first = 10**9  # `lines` limits it
        else:
            self.first += _STEPS.get(key, 0) + _PAGES.get(key, 0) * self.page
        return True

    def _type(self, key: str) -> None:
        if key in ("enter", "esc"):
            self.is_typing = False
            self.filter = "" if key == "esc" else self.filter
        elif key == "backspace":
            self.filter = self.filter[:-1]
        elif len(key) == 1 and key.isprintable():
            self.filter += key
        self.first = 0

    def lines(self, status: Status, width: int, height: int) -> list[Text]:
        """Return the lines that fit into `width` and `height`; 0 is unlimited."""
        if self.shows_help:
            return [_line("", each, width) for each in ("azureml-fe top", "", *_HELP)][: height or None]
        shows_details = not height or height >= _LINES_OF_DETAILS
        services = self._services(status)
        names = [_names(service) for service in services]
        layout = _Layout(max((len(name) for each in names for name in each), default=0), width)
        max_problems = _MAX_PROBLEMS if height else None
        head = [*_head(status, width, details=shows_details, max_problems=max_problems), layout.header(width)]
        foot = _foot(status, width) if shows_details else []
        room = max(1, height - len(head) - len(foot) - 1) if height else 0
        rows = [row for service in services for row in layout.rows(service, width)]
        if not height:
            return [*head, *rows, *foot]
        self.page = room
        self.first = max(0, min(self.first, len(rows) - room))
        visible = rows[self.first : self.first + room]
        blank = [Text()] * (room - len(visible))
        return [*head, *visible, *blank, *foot, self._prompt(len(rows), width)][-height:]

    def _services(self, status: Status) -> list[dict[str, Any]]:
        text = self.filter.lower()
        services = [each for each in status["services"] if text in str(each["name"]).lower()]
        services.sort(key=lambda service: str(service["name"]))
        order = ORDERS[self.order]
        if order in _ORDERS:
            services.sort(key=_ORDERS[order], reverse=not self.is_reversed)
        elif self.is_reversed:
            services.reverse()
        return services

    def _prompt(self, rows: int, width: int) -> Text:
        """Return the last line."""
        if self.is_typing:
            return _line("bold", f"/{self.filter}_", width)
        if self.error:
            return _line("bad", self.error, width)
        last = min(rows, self.first + self.page)
        parts = [f"{min(self.first + 1, rows)}-{last} of {rows}", "? help", "q quit", f"by {ORDERS[self.order]}"]
        if self.filter:
            parts.insert(1, f"/{self.filter}")
        return _line("dim", _join(parts, width), width)


class _Layout:
    """The columns that fit into a width."""

    def __init__(self, longest_name: int, width: int) -> None:
        """`longest_name` is in characters. A `width` of 0 is unlimited: names are complete."""
        name = max(_MIN_NAME, min(longest_name, _MAX_NAME, width // 3) if width else longest_name)
        left = width - name if width else _WIDTH_AFTER_NAME
        self._columns: list[_Column] = []
        for column in _COLUMNS:
            if left < column.width + 1:
                break
            left -= column.width + 1
            self._columns.append(column)
        self._cells = left - 2 if len(self._columns) == len(_COLUMNS) and left - 2 >= _MIN_CELLS else 0
        self._name = name if self._cells else name + left

    def header(self, width: int) -> Text:
        titles = "".join(f" {column.title:>{column.width}}" for column in self._columns)
        cells = "  REPLICAS" if self._cells else ""
        return _line("head", f"{'SERVICE':{self._name}}{titles}{cells}", width, fill=True)

    def rows(self, service: dict[str, Any], width: int) -> Iterator[Text]:
        for version, name in zip(service["versions"], _names(service), strict=True):
            values = "".join(f" {column.text(version):>{column.width}}" for column in self._columns)
            cells = "  " + _cells(version["replicas"], min(_MAX_CELLS, self._cells)) if self._cells else ""
            yield _line(_version_style(version), f"{_fit(name, self._name)}{values}{cells}", width)
            if uses := _other_uses_of_slots(version):
                yield _line("warn", f"  {uses}", width)
            for replica in list(filter(_is_ejected, version["replicas"]))[:_MAX_EJECTED]:
                yield _line("bad", f"  {_ejection(replica)}", width)


def _head(status: Status, width: int, *, details: bool, max_problems: int | None) -> list[Text]:
    router, totals = status["router"], status["totals"]
    numbers = [
        f"{totals['requests_per_second']:g} requests/s",
        f"{totals['in_flight']} in flight",
        f"{totals['abandoned']} abandoned" if totals.get("abandoned") else "",
        f"{totals['queued']} queued",
        f"{totals['refused_per_second']:g} refused/s",
        f"{_count(totals['replicas_ready'], 'replica')} ready",
        _count(totals["services"], "service"),
    ]
    groups = status.get("problem_groups", ())
    problems, count = list(map(_problem, groups)), sum(group["problems"] for group in groups)
    if not router["config_in_force"] and status["config_errors"]:
        problems.append(f"rejected settings: {status['config_errors'][0]['error']}")
        count += 1
    if not details and problems:
        return [_line("bad", f"{_count(count, 'problem')}: {problems[0]}", width)]
    title = f"azureml-fe {router['version']}  {router['pod']}" + ("  leader" if router["leads"] else "")
    lines = [_line("bold", title, width)] if details else []
    lines.append(_line("", _join(filter(None, numbers), width), width))
    for problem in problems[:max_problems]:
        lines += [_line("bad", part, width) for part in _wrap(problem, width, complete=max_problems is None)]
    if max_problems is not None and len(problems) > max_problems:
        lines.append(_line("bad", f"... and {_count(len(problems) - max_problems, 'more problem')}", width))
    return lines


def _wrap(problem: str, width: int, *, complete: bool) -> list[str]:
    """Return the lines of a problem: at most `_LINES_OF_PROBLEM` on a screen."""
    if complete or width < _MIN_WRAPPED:
        return [problem]
    return textwrap.wrap(problem, width, subsequent_indent="  ", max_lines=_LINES_OF_PROBLEM, placeholder=" ...")


def _problem(group: Mapping[str, Any]) -> str:
    """Return a group of problems in one line."""
    services, note = list(group["services"]), group["note"]
    more = group["more_services"] + max(0, len(services) - _MAX_SERVICES_OF_PROBLEM)
    if len(services) == 1:
        repeated = f", and {group['problems'] - 1} more like this" if group["problems"] > 1 else ""
        return f"service {services[0]}: {with_note(group['cause'], note)}{repeated}"
    if not services:
        return with_note(group["cause"], note)
    names = ", ".join(services[:_MAX_SERVICES_OF_PROBLEM]) + (f" and {more} more" if more else "")
    return f"{len(services) + group['more_services']} services: {with_note(group['cause'], names)}"


def _foot(status: Status, width: int) -> list[Text]:
    lines = [Text()]
    for decision in status["decisions"][:_MAX_DECISIONS]:
        clock = time.strftime("%H:%M:%S", time.localtime(decision["time"]))
        name = decision["service"] + ("" if decision["version"] == "default" else "/" + decision["version"])
        lines.append(_line("", f"{clock} {name} to {decision['desired']}: {decision['reason']}", width))
    workers = [f"{worker['name']} {worker['state']} {worker['in_flight']}" for worker in status["workers"]]
    lines.append(_line("", "workers: " + (", ".join(workers) or "none"), width))
    if status["peers"]:
        peers = [f"{peer['name']} {peer['standing']} ({peer['services_owned']} owned)" for peer in status["peers"]]
        has_problem = any(peer["standing"] != "live" for peer in status["peers"])
        lines.append(_line("warn" if has_problem else "", "pods: " + ", ".join(peers), width))
    return lines


def _names(service: dict[str, Any]) -> Sequence[str]:
    versions = service["versions"]
    if len(versions) == 1 and versions[0]["name"] == "default":
        return [str(service["name"])]
    return [f"{service['name']}/{version['name']}" for version in versions]


def _version_style(version: Version) -> str:
    if version["refused_per_second"] or not version["states"].get("ready"):
        return "bad"
    return "warn" if version["queued"] else ""


def _other_uses_of_slots(version: Version) -> str:
    """Return what is known of abandoned requests. Earlier routers do not report it."""
    abandoned, suspect = version.get("abandoned"), version.get("suspect_slots")
    return ", ".join(
        [f"{abandoned} abandoned (replicas go on with them)"] * bool(abandoned)
        + [f"{_count(suspect or 0, 'suspect slot')} (used last)"] * bool(suspect)
    )


def _is_ejected(replica: dict[str, Any]) -> bool:
    health = replica.get("health")
    return bool(health and health["ejected_until"])


def _ejection(replica: dict[str, Any]) -> str:
    health = replica["health"]
    until = time.strftime("%H:%M:%S", time.localtime(health["ejected_until"]))
    return f"{replica['id']} gets no requests until {until}: {health['ejected_for']}"


def _cells(replicas: list[dict[str, Any]], room: int) -> str:
    """Return one character per replica: its load if it is ready and not ejected, otherwise its state."""
    cells = []
    for replica in replicas:
        if _is_ejected(replica):
            cells.append("!")
        elif replica["state"] == "ready":
            used = replica["in_flight"] + replica.get("abandoned", 0)
            share = min(1.0, used / (replica["slots"] or max(used, 1)))
            cells.append(_SHADES[round(share * (len(_SHADES) - 1))] if used else "·")
        else:
            cells.append({"starting": "+", "draining": "-"}.get(replica["state"], "?"))
    text = "".join(cells)
    return text if len(text) <= room else text[: max(0, room - 1)] + "…"


def _line(style: str, text: str, width: int, *, fill: bool = False) -> Text:
    """Return a line of at most `width` columns; 0 is unlimited. Control characters, which could change the state of the
    terminal, are replaced."""
    printable = "".join(each if each.isprintable() else "?" for each in text)
    if width and (fill or cell_len(printable) > width):
        printable = set_cell_size(printable, width)
    return Text(printable, style=_STYLES.get(style, ""), no_wrap=True, end="")


def _join(parts: Iterable[str], width: int) -> str:
    """Return the first parts that fit into `width`; 0 is unlimited."""
    text = ""
    for part in parts:
        longer = f"{text}  {part}" if text else part
        if width and cell_len(longer) > width:
            break
        text = longer
    return text


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _fit(name: str, width: int) -> str:
    """Return `name` with exactly `width` columns; a longer one ends with an ellipsis."""
    printable = "".join(each if each.isprintable() else "?" for each in name)
    return set_cell_size(printable, width - 1) + "…" if cell_len(printable) > width else set_cell_size(printable, width)
