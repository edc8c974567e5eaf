"""SIGINT and SIGTERM while the router's modules are imported: they end the process at once.

Python's own handling does not do that. It raises KeyboardInterrupt for SIGINT, which is lost if a destructor or a
callback of the import system runs at that moment. It leaves SIGTERM to the kernel, which drops it for process 1 of a
container.

This module imports almost nothing, so that its handlers are in force as early as possible. `cli.run` replaces them once
there is something to stop in order.
"""

import os
import signal
from types import FrameType

_EXIT_FAILED = 1


def exit_on_signals() -> None:
    """Let SIGINT and SIGTERM end this process with exit code 1 and no traceback. Ignored signals stay ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit)


def restore_default_handlers() -> None:
    """Undo `exit_on_signals`. Then a command that SIGINT interrupts can clean up."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGTERM) is _exit:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(_number: int, _frame: FrameType | None) -> None:
    os._exit(_EXIT_FAILED)
