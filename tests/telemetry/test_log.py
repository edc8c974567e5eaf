"""The application log: its two forms, its level, and what it must never tell."""

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pytest

from router.telemetry.log import REDACTED, configure, event, rfc3339, set_level

LOGGER = logging.getLogger("router.tests.telemetry")


class State(StrEnum):
    READY = "ready"


@dataclass(frozen=True)
class Holder:
    name: str
    primary_key: str = field(repr=False)


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("router")
    before = list(root.handlers), root.level, own.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def only_line(stream: io.StringIO) -> dict[str, object]:
    (line,) = stream.getvalue().splitlines()
    parsed = json.loads(line)
    assert isinstance(parsed, dict)
    return parsed


def test_a_line_has_the_fixed_fields_first_then_the_events_own(stream: io.StringIO) -> None:
    configure("info", stream, human=False)
    event(LOGGER, logging.WARNING, "replica ended", service="iris", replicas=2, state=State.READY)
    line = only_line(stream)
    assert list(line) == ["time", "level", "logger", "message", "service", "replicas", "state"]
    assert line["level"] == "warning"
    assert line["logger"] == "router.tests.telemetry"
    assert line["message"] == "replica ended"
    assert (line["service"], line["replicas"], line["state"]) == ("iris", 2, "ready")


def test_time_is_rfc3339_in_utc_with_milliseconds() -> None:
    assert rfc3339(0.25) == "1970-01-01T00:00:00.250Z"
    assert rfc3339(1714564800.0) == "2024-05-01T12:00:00.000Z"


@pytest.mark.parametrize("name", ["primary_key", "KEY", "token", "Authorization", "set-cookie", "client_secret"])
@pytest.mark.parametrize("human", [True, False])
def test_values_of_secret_names_are_never_printed(stream: io.StringIO, name: str, human: bool) -> None:
    configure("info", stream, human=human)
    fields: dict[str, Any] = {name: "hunter2", "nested": {"inner": [{name: ["hunter2"]}]}}
    event(LOGGER, logging.INFO, "settings changed", **fields)
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count(REDACTED) == 2


def test_hidden_dataclass_fields_and_bytes_are_never_printed(stream: io.StringIO) -> None:
    configure("info", stream, human=False)
    event(LOGGER, logging.INFO, "seen", holder=Holder("iris", "hunter2"), payload=b"hunter2")
    line = only_line(stream)
    assert line["holder"] == "Holder(name='iris')"
    assert line["payload"] == "<7 bytes>"


def test_an_exception_is_one_field(stream: io.StringIO) -> None:
    configure("info", stream, human=False)
    try:
        raise ValueError("no\nsuch thing")
    except ValueError as error:
        event(LOGGER, logging.ERROR, "failed", exception=error, cause=error)
    line = only_line(stream)
    assert line["cause"] == "ValueError: no\nsuch thing"
    assert str(line["exception"]).startswith("Traceback")
    assert str(line["exception"]).endswith("ValueError: no\nsuch thing")


def test_a_field_cannot_take_the_place_of_a_fixed_one(stream: io.StringIO) -> None:
    configure("info", stream, human=False)
    event(LOGGER, logging.INFO, "tick", time="never", level_="x")
    line = only_line(stream)
    assert line["field_time"] == "never"
    assert line["time"] != "never"


def test_what_json_cannot_say_is_said_as_text(stream: io.StringIO) -> None:
    configure("info", stream, human=False)
    event(LOGGER, logging.INFO, "odd", ratio=float("nan"), big=2**70, text="\ud800", keys_={1: 2}, seen={3})
    line = only_line(stream)
    assert line["ratio"] == "nan"
    assert line["big"] == 2**70
    assert line["text"] == "\ud800"
    assert line["seen"] == [3]


def test_level_changes_at_run_time(stream: io.StringIO) -> None:
    configure(logging.WARNING, stream, human=False)
    event(LOGGER, logging.INFO, "unseen")
    set_level("debug")
    event(LOGGER, logging.DEBUG, "seen")
    assert only_line(stream)["message"] == "seen"


def test_an_unknown_level_is_refused(stream: io.StringIO) -> None:
    configure("info", stream, human=False)
    with pytest.raises(ValueError, match="LOUD"):
        set_level("loud")


def test_other_peoples_loggers_speak_from_warning_upwards(stream: io.StringIO) -> None:
    configure("debug", stream, human=False)
    theirs = logging.getLogger("somebody.http")
    theirs.debug("Authorization: %s", "Bearer hunter2")
    theirs.warning("slow: %s", "api server")
    assert only_line(stream)["message"] == "slow: api server"


def test_configuring_twice_prints_once(stream: io.StringIO) -> None:
    former = io.StringIO()
    configure("info", former, human=True)
    configure("info", stream, human=False)
    event(LOGGER, logging.INFO, "once")
    assert former.getvalue() == ""
    assert only_line(stream)["message"] == "once"


def test_human_lines_are_compact_and_quote_what_needs_it(stream: io.StringIO) -> None:
    configure("info", stream, human=True)
    event(LOGGER, logging.INFO, "replicas changed", service="iris", wanted=2, ratio=1 / 3, why="too busy", none=None)
    line = stream.getvalue()
    assert line.endswith('info    replicas changed  service=iris wanted=2 ratio=0.333333 why="too busy" none=null\n')
    assert len(line.split(" ")[0]) == len("12:00:00")


def test_human_lines_do_not_let_values_steer_the_terminal(stream: io.StringIO) -> None:
    configure("info", stream, human=True)
    event(LOGGER, logging.INFO, "seen \x1b[2J", service="a\x1b[31m\nb")
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_human_lines_end_with_an_indented_traceback(stream: io.StringIO) -> None:
    configure("info", stream, human=True)
    event(LOGGER, logging.ERROR, "failed", exception=ValueError("bad"), service="iris")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("error   failed  service=iris")
    assert rest == ["    ValueError: bad"]
