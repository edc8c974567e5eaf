"""The exception that a program has raised, found in its output. No I/O.

Only Python's tracebacks are recognized. A line may have a prefix, such as the time and level of a logger.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_FIRST_LINE = "Traceback (most recent call last):"
_FRAME = re.compile(r'\s*File "(.+)", line (\d+)')
_LAST_LINE = re.compile(r"([A-Za-z_][\w.]*)(?:: (.*))?")
_CHAIN = re.compile(
    r"The above exception was the direct cause|During handling of the above exception, another exception occurred"
)
_LIBRARY = re.compile(r"/(?:site|dist)-packages/|/lib/python\d|^<")
_MAX_MESSAGE = 300  # characters


class RaisedException(NamedTuple):
    """An exception with the place of the program's own code that raised it, or that called the library that did."""

    type: str
    message: str
    file: str
    """Relative to the directory of the program if it is in there."""
    line: int
    traceback: tuple[str, ...] = ()
    """The lines of the output, from the first frame to the exception itself."""

    @property
    def place(self) -> str:
        """The place for people: `score.py, line 12`."""
        return f"{self.file}, line {self.line}"

    def describe(self, *, with_message: bool) -> str:
        """Return one line: `RuntimeError: weights not found (score.py, line 12)`."""
        message = f": {self.message}" if self.message and with_message else ""
        return f"{self.type}{message} ({self.place})"


def last_exception(output: str, directory: Path) -> RaisedException | None:
    """Return the exception of the last traceback in `output`; None if there is none. `directory` is that of the
    program.

    A server may catch an exception and raise one of its own. So of chained tracebacks, the last one with a frame
    outside of libraries is used.
    """
    chains = _parse(output.splitlines())
    if not chains:
        return None
    for exception, is_own in reversed(chains[-1]):
        if is_own:
            return _relative(exception, directory)
    return _relative(chains[-1][-1][0], directory)


_Chain = list[tuple[RaisedException, bool]]  # True if a frame is outside of libraries


def _parse(lines: Sequence[str]) -> list[_Chain]:
    """Return the tracebacks, grouped by chains, in the order of the output."""
    chains: list[_Chain] = []
    frames: list[tuple[str, int]] = []
    first, is_open, is_chained = 0, False, False
    for number, line in enumerate(lines):
        if line.endswith(_FIRST_LINE):
            first, is_open, frames = number + 1, True, []
        elif is_open and (frame := _FRAME.match(line)):
            frames.append((frame[1], int(frame[2])))
        elif is_open and line[:1].strip():  # neither empty nor indented: the end of the traceback
            is_open = False
            if frames and (last := _LAST_LINE.fullmatch(line)):
                if not is_chained:
                    chains.append([])
                traceback = tuple(lines[first : number + 1])
                chains[-1].append(_exception(last[1], last[2] or "", frames, traceback))
            is_chained = False
        elif _CHAIN.match(line):
            is_chained = bool(chains)
    return chains


def _exception(
    name: str, message: str, frames: Sequence[tuple[str, int]], traceback: tuple[str, ...]
) -> tuple[RaisedException, bool]:
    own = [frame for frame in frames if not _LIBRARY.search(frame[0])]
    file, line = (own or frames)[-1]
    return RaisedException(name, message[:_MAX_MESSAGE], file, line, traceback), bool(own)


def _relative(exception: RaisedException, directory: Path) -> RaisedException:
    if not Path(exception.file).is_relative_to(directory):
        return exception
    return exception._replace(file=os.path.relpath(exception.file, directory))
