"""The application log: its two formats, its level, and redaction."""

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pytest

from router.telemetry.log import REDACTED, configure, event, report_repeats, rfc3339, set_level
from router.telemetry.repeats import MAX_PER_SECOND

LOGGER = logging.getLogger("router.tests.telemetry")


class State(StrEnum):
    READY = "ready"


@dataclass(frozen=True)
class Credentials:
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


def test_line_has_the_reserved_fields_first_then_those_of_the_event(stream: io.StringIO) -> None:
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
def test_fields_with_secret_names_are_redacted(stream: io.StringIO, name: str, human: bool) -> None:
    configure("info", stream, human=human)
    fields: dict[str, Any] = {name: "hunter2", "nested": {"inner": [{name: ["hunter2"]}]}}
    event(LOGGER, logging.INFO, "settings changed", **fields)
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count(REDACTED) == 2


def test_dataclass_fields_without_repr_and_bytes_are_never_printed(stream: io.StringIO) -> None:
    configure("info", stream, human=False)
    event(LOGGER, logging.INFO, "message", owner=Credentials("iris", "hunter2"), payload=b"hunter2")
    line = only_line(stream)
    assert line["owner"] == "Credentials(name='iris')"
    assert line["payload"] == "<7 bytes>"


def test_exception_is_one_field(stream: io.StringIO) -> None:
    configure("info", stream, human=False)
    try:
        raise ValueError("no\nsuch thing")
    except ValueError as error:
        event(LOGGER, logging.ERROR, "failed", exception=error, cause=error)
    line = only_line(stream)
    assert line["cause"] == "ValueError: no\nsuch thing"
    assert str(line["exception"]).startswith("Traceback")
    assert str(line["exception"]).endswith("ValueError: no\nsuch thing")


def test_field_with_a_reserved_name_is_renamed(stream: io.StringIO) -> None:
    configure("info", stream, human=False)
    event(LOGGER, logging.INFO, "tick", time="never", level_="x")
    line = only_line(stream)
    assert line["field_time"] == "never"
    assert line["time"] != "never"


def test_values_that_json_lacks_are_converted(stream: io.StringIO) -> None:
    configure("info", stream, human=False)
    event(LOGGER, logging.INFO, "values", ratio=float("nan"), big=2**70, note="\ud800", keys_={1: 2}, members={3})
    line = only_line(stream)
    assert line["ratio"] == "nan"
    assert line["big"] == 2**70
    assert line["note"] == "\ud800"
    assert line["members"] == [3]


def test_level_changes_at_run_time(stream: io.StringIO) -> None:
    configure(logging.WARNING, stream, human=False)
    event(LOGGER, logging.INFO, "hidden")
    set_level("debug")
    event(LOGGER, logging.DEBUG, "visible")
    assert only_line(stream)["message"] == "visible"


def test_unknown_level_is_an_error(stream: io.StringIO) -> None:
    configure("info", stream, human=False)
    with pytest.raises(ValueError, match="LOUD"):
        set_level("loud")


def test_loggers_of_libraries_are_limited_to_warning(stream: io.StringIO) -> None:
    configure("debug", stream, human=False)
    library_logger = logging.getLogger("library.http")
    library_logger.debug("Authorization: %s", "Bearer hunter2")
    library_logger.warning("slow: %s", "api server")
    assert only_line(stream)["message"] == "slow: api server"


def test_second_configure_replaces_the_first_handler(stream: io.StringIO) -> None:
    first = io.StringIO()
    configure("info", first, human=True)
    configure("info", stream, human=False)
    event(LOGGER, logging.INFO, "once")
    assert first.getvalue() == ""
    assert only_line(stream)["message"] == "once"


def test_human_line_quotes_values_with_spaces(stream: io.StringIO) -> None:
    configure("info", stream, human=True)
    event(LOGGER, logging.INFO, "replicas changed", service="iris", wanted=2, ratio=1 / 3, why="too busy", none=None)
    line = stream.getvalue()
    assert line.endswith('info    replicas changed  service=iris wanted=2 ratio=0.333333 why="too busy" none=null\n')
    assert len(line.split(" ")[0]) == len("12:00:00")


def test_human_line_escapes_control_characters(stream: io.StringIO) -> None:
    configure("info", stream, human=True)
    event(LOGGER, logging.INFO, "message \x1b[2J", service="a\x1b[31m\nb")
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_human_line_is_followed_by_an_indented_traceback(stream: io.StringIO) -> None:
    configure("info", stream, human=True)
    event(LOGGER, logging.ERROR, "failed", exception=ValueError("bad"), service="iris")
    head, *rest = stream.getvalue().splitlines()
    assert head.endswith("error   failed  service=iris")
    assert rest == ["    ValueError: bad"]


def test_equal_warnings_of_a_second_are_limited_and_counted(stream: io.StringIO) -> None:
    configure("info", stream, human=False)
    for number in range(263):
        event(LOGGER, logging.WARNING, "invalid response", service="iris", number=number)
    event(LOGGER, logging.WARNING, "invalid response", service="other")
    event(LOGGER, logging.WARNING, "another message", service="iris")
    report_repeats(at_exit=True)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.get("number", line["service"]) for line in lines] == [*range(MAX_PER_SECOND), "other", "iris", "iris"]
    last = lines[-1]
    assert last.pop("time")
    assert last == {
        "level": "warning", "logger": LOGGER.name, "message": "invalid response", "service": "iris",
        "repeated": 263 - MAX_PER_SECOND,
    }  # fmt: skip


def test_messages_below_warning_are_not_limited(stream: io.StringIO) -> None:
    configure("debug", stream, human=False)
    for level in (logging.INFO, logging.DEBUG):
        for _ in range(100):
            event(LOGGER, level, "replica starts")
    report_repeats(at_exit=True)
    assert stream.getvalue().count("\n") == 200


def test_human_text_replaces_message_and_fields_and_is_indented(stream: io.StringIO) -> None:
    configure("info", stream, human=True)
    event(LOGGER, logging.WARNING, "replica cannot start", text="iris cannot start\n  1\n\x1b[2J", replica="a")
    assert stream.getvalue()[9:] == "warning iris cannot start\n      1\n    \\u001b[2J\n"
