"""The messages of the exporters' libraries.

They are not logged as they are: some contain what could not be exported, and the instrumentation key. The last one is
part of the router's own log line about a failed export.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

_LIBRARIES = ("azure", "opentelemetry")
_MAX_CHARACTERS = 300


class ExportLog(logging.Handler):
    """Keeps the last message of each thread, as one line without secrets."""

    def __init__(self, secrets: Iterable[str]) -> None:
        """`secrets` are replaced in messages."""
        super().__init__(logging.WARNING)
        self._secrets = sorted({secret for secret in secrets if secret}, key=len, reverse=True)
        self._last: dict[int, str] = {}

    def install(self) -> None:
        """Receive the messages of the libraries from now on, in place of the router's log and of an earlier
        `ExportLog`."""
        for name in _LIBRARIES:
            logger = logging.getLogger(name)
            for previous in [each for each in logger.handlers if isinstance(each, ExportLog)]:
                logger.removeHandler(previous)
            logger.addHandler(self)
            logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message of a record."""
        self._last[threading.get_ident()] = self.printable(record.getMessage())

    def take(self) -> str:
        """Return the last message of this thread since the last call; empty if there is none."""
        return self._last.pop(threading.get_ident(), "")

    def printable(self, text: str) -> str:
        """Return the first characters of a text on one line, without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        text = " ".join(text.split())
        return text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + "..."
