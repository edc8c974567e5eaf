"""The application log: what an operator should read, as JSON lines or, on a terminal, as readable ones.

A message is a constant and its values are fields: `event(logger, logging.WARNING, "replica ended", service="iris")`.
Every line has `time`, `level`, `logger` and `message`, then the event's fields, then `exception` if there is one.
Requests are not logged here (see `access_log`), and nothing here knows what an event means.

Secrets: the value of a field, at any depth, whose name looks like that of a secret is never printed; neither are
bytes, which may be a body. Objects are printed by `str`, so that a dataclass field with `repr=False` stays unseen.
Other people's loggers speak from WARNING upwards at any level: HTTP clients put headers into their debug lines.
"""

import json
import logging
import math
import re
from collections.abc import Mapping, Set
from datetime import UTC, datetime
from functools import lru_cache
from typing import TextIO

REDACTED = "[redacted]"

_SECRET_NAME = re.compile("key|token|authorization|secret|password|cookie|credential", re.IGNORECASE)
_FIXED = ("time", "level", "logger", "message", "exception")
_OWN = "router"
_LONGEST_TRACEBACK = 12_000  # characters


def event(
    logger: logging.Logger,
    level: int,
    message: str,
    *,
    exception: BaseException | None = None,
    **fields: object,
) -> None:
    """Log a constant `message` with `fields`; `exception` becomes one field with its traceback."""
    if logger.isEnabledFor(level):
        logger.log(level, message, exc_info=exception, extra={"fields": fields}, stacklevel=2)


def configure(level: int | str, stream: TextIO, *, human: bool) -> None:
    """Send the whole process's log to `stream`, replacing what an earlier call set up.

    `human` chooses lines for a terminal over JSON. `level` is the router's own; see `set_level`.
    """
    handler = _Handler(stream)
    handler.setFormatter(HumanFormatter() if human else JsonFormatter())
    root = logging.getLogger()
    for former in [former for former in root.handlers if isinstance(former, _Handler)]:
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    set_level(level)


def set_level(level: int | str) -> None:
    """Change the level of the router's own loggers, at any time.

    `level` is a number of `logging` or a name in any case. Raises ValueError for an unknown name.
    """
    logging.getLogger(_OWN).setLevel(level.upper() if isinstance(level, str) else level)


def level() -> str:
    """The name of the level in force, in lower case."""
    return logging.getLevelName(logging.getLogger(_OWN).getEffectiveLevel()).lower()


def rfc3339(epoch: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC with milliseconds: `2024-05-01T12:00:00.250Z`."""
    second = int(epoch)
    return f"{_rfc3339_second(second)}.{int((epoch - second) * 1000):03d}Z"


@lru_cache(maxsize=2)  # the access log asks thousands of times within one second
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
    """`12:00:00 warning replica ended  service=iris replica=3`, local time; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        line = f"{clock} {record.levelname.lower():7} {_printable(record.getMessage())}"
        fields = " ".join(f"{name}={_human(value)}" for name, value in _fields(record).items())
        if fields:
            line += f"  {fields}"
        if record.exc_info:
            traceback = self.formatException(record.exc_info).splitlines()
            line = "\n    ".join([line, *map(_printable, traceback)])
        return line


class _Handler(logging.StreamHandler[TextIO]):
    """Marks the handler that `configure` made, so that it replaces its own and nobody else's."""


def _tail(traceback: str) -> str:
    """The end of a long traceback, which says what happened: container runtimes cut lines at 16 KiB."""
    return traceback if len(traceback) <= _LONGEST_TRACEBACK else "... " + traceback[-_LONGEST_TRACEBACK:]


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: object = getattr(record, "fields", None)
    if not isinstance(fields, Mapping):
        return {}
    return {_free(str(name)): _plain(str(name), value) for name, value in fields.items()}


def _free(name: str) -> str:
    return f"field_{name}" if name in _FIXED else name


def _plain(name: str, value: object) -> object:
    """`value` as JSON has it, without what must not be told."""
    if _SECRET_NAME.search(name):
        return REDACTED
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return {str(inner): _plain(str(inner), held) for inner, held in value.items()}
    if isinstance(value, list | tuple | Set):
        return [_plain(name, held) for held in value]
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    return str(value)


def _human(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if text.isprintable() and text and not set(' "=') & set(text) else json.dumps(text)


def _printable(text: str) -> str:
    """Control characters escaped: a line must not steer the terminal, nor pass for two."""
    return text if text.isprintable() else json.dumps(text)[1:-1]
