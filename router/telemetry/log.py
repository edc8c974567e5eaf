"""The application log: events for operators, as JSON lines or, on a terminal, as readable text.

A message is a constant and its values are fields: `event(logger, logging.WARNING, "replica ended", service="iris")`.
Every line has `time`, `level`, `logger` and `message`, then the event's fields, then `exception` if there is one.
Requests are not logged here but in `access_log`.

Of equal warnings and errors, each second has at most `repeats.MAX_PER_SECOND` lines. One more line, with the field
`repeated`, has the number of those that were suppressed. Less severe messages are not limited: their number is bounded
by what operators change.

Secrets: a field whose name suggests a secret is printed as `[redacted]`, at any depth. Bytes are never printed, since
they may be a body. Objects are printed by `str`, which omits dataclass fields with `repr=False`. Loggers of libraries
only log at WARNING and above, at any level of the router's own loggers: HTTP clients log headers in debug messages.
"""

import json
import logging
import math
import os
import re
import time
from collections.abc import Mapping, Set
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import lru_cache
from typing import TextIO

from router.telemetry.repeats import MessageKey, RepeatLimiter

REDACTED = "[redacted]"

CLEAR_LINE = "\r\x1b[K"
"""Control sequence (ECMA-48) that clears the line of the cursor."""

_SECRET_NAME = re.compile("key|token|authorization|secret|password|cookie|credential", re.IGNORECASE)
_RESERVED = ("time", "level", "logger", "message", "exception")
_ROOT_LOGGER = "router"
_MAX_TRACEBACK = 12_000  # characters


def event(
    logger: logging.Logger,
    level: int,
    message: str,
    *,
    exception: BaseException | None = None,
    text: str | None = "",
    **fields: object,
) -> None:
    """Log a constant `message` with `fields`; `exception` becomes one field with its traceback.

    If `text` is given, readable text has it instead of `message` and `fields`. Its lines after the first are indented.
    With None, readable text omits the event, as the console of `azureml-fe local` shows it.
    """
    if logger.isEnabledFor(level):
        logger.log(level, message, exc_info=exception, extra={"fields": fields, "text": text}, stacklevel=2)


def configure(level: int | str, stream: TextIO, *, human: bool) -> None:
    """Send the log of the whole process to `stream`, replacing the handler of an earlier call.

    With `human`, write readable text instead of JSON. `level` is the level of the router's own loggers, see
    `set_level`.
    """
    handler = _Handler(stream)
    is_smart = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    handler.setFormatter(HumanFormatter(prefix=CLEAR_LINE if is_smart else "") if human else JsonFormatter())
    if human:
        handler.addFilter(_is_for_people)
    root = logging.getLogger()
    for previous in [previous for previous in root.handlers if isinstance(previous, _Handler)]:
        root.removeHandler(previous)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    set_level(level)


def report_repeats(*, at_exit: bool = False) -> None:
    """Log how many equal messages were suppressed, once their second is over or `at_exit`. Call this several times a
    second."""
    now = math.inf if at_exit else time.monotonic()
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            handler.report_repeats(now)


def set_level(level: int | str) -> None:
    """Change the level of the router's own loggers.

    `level`: a number of `logging` or a name in any case. Raises ValueError for an unknown name.
    """
    logging.getLogger(_ROOT_LOGGER).setLevel(level.upper() if isinstance(level, str) else level)


def current_level() -> str:
    """Return the name of the current level of the router's own loggers, in lower case."""
    return logging.getLevelName(logging.getLogger(_ROOT_LOGGER).getEffectiveLevel()).lower()


def rfc3339(epoch: float) -> str:
    """Format seconds since the epoch as RFC 3339 in UTC with milliseconds: `2024-05-01T12:00:00.250Z`."""
    second = int(epoch)
    return f"{_rfc3339_second(second)}.{int((epoch - second) * 1000):03d}Z"


@lru_cache(maxsize=2)  # the access log calls this thousands of times within one second
def _rfc3339_second(epoch: int) -> str:
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class JsonFormatter(logging.Formatter):
    """One JSON object per record, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(_fields(record))
        if record.exc_info:
            line["exception"] = _tail(self.formatException(record.exc_info))
        return json.dumps(line)


class HumanFormatter(logging.Formatter):
    """`12:00:00 warning replica ended  service=iris replica=3` in local time, then an indented traceback if any.

    `prefix` clears a line of a terminal that another part of the router updates in place.
    """

    def __init__(self, prefix: str = "") -> None:
        super().__init__()
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        headline, *details = str(getattr(record, "text", "")).splitlines() or [record.getMessage()]
        line = f"{self._prefix}{clock} {record.levelname.lower():7} {_printable(headline)}"
        if not getattr(record, "text", ""):
            fields = " ".join(f"{name}={_human(value)}" for name, value in _fields(record).items())
            line += f"  {fields}" if fields else ""
        if record.exc_info:
            details += self.formatException(record.exc_info).splitlines()
        return "\n    ".join([line, *map(_printable, details)])


class _Handler(logging.StreamHandler[TextIO]):
    """The handler made by `configure`. It limits equal messages."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._repeats = RepeatLimiter()

    def emit(self, record: logging.LogRecord) -> None:
        self.report_repeats(time.monotonic())
        if record.levelno < logging.WARNING or self._repeats.admit(_message_key(record)):
            super().emit(record)

    def report_repeats(self, now: float) -> None:
        """Write the number of suppressed messages; `now` as in `RepeatLimiter`."""
        with self.lock or nullcontext():
            for key, count in self._repeats.take_suppressed(now):
                fields: dict[str, object] = {} if key.service is None else {"service": key.service}
                fields["repeated"] = count
                level = {"levelno": key.level, "levelname": logging.getLevelName(key.level)}
                record = logging.makeLogRecord({"name": key.logger, "msg": key.message, "fields": fields, **level})
                super().emit(record)


def _is_for_people(record: logging.LogRecord) -> bool:
    return getattr(record, "text", "") is not None


def _message_key(record: logging.LogRecord) -> MessageKey:
    fields: object = getattr(record, "fields", None)
    service = fields.get("service") if isinstance(fields, Mapping) else None
    return MessageKey(record.name, record.levelno, str(record.msg), None if service is None else str(service))


def _tail(traceback: str) -> str:
    """Return the end of a long traceback, which contains the error. Container runtimes split lines at 16 KiB."""
    return traceback if len(traceback) <= _MAX_TRACEBACK else "... " + traceback[-_MAX_TRACEBACK:]


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: object = getattr(record, "fields", None)
    if not isinstance(fields, Mapping):
        return {}
    return {_rename_if_reserved(str(name)): _jsonable(str(name), value) for name, value in fields.items()}


def _rename_if_reserved(name: str) -> str:
    return f"field_{name}" if name in _RESERVED else name


def _jsonable(name: str, value: object) -> object:
    """Convert `value` to JSON types and redact secrets."""
    if _SECRET_NAME.search(name):
        return REDACTED
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return {str(key): _jsonable(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | Set):
        return [_jsonable(name, item) for item in value]
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    return str(value)


def _human(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if text.isprintable() and text and not set(' "=') & set(text) else json.dumps(text)


def _printable(text: str) -> str:
    """Escape control characters: a message must not control the terminal or look like two lines."""
    return text if text.isprintable() else json.dumps(text)[1:-1]
