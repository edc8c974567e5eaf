"""A file in the state folder that only its user can read.

It is replaced as a whole, so that a reader sees the old or the new one, and a lock beside it keeps two writers apart
(the router, and a command). What it holds is the business of who uses it.
"""

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from router.values import SettingsError


def make_folder(state_dir: Path) -> None:
    """Make the state folder, for its user only, where there is none. Raises OSError that names its setting."""
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"state_dir: {state_dir} cannot be made: {error.strerror}; allowed: a folder") from error


class PrivateFile:
    """One such file. Every method raises OSError when the folder cannot be used."""

    def __init__(self, path: Path, name: str, *, tell: Callable[[str], None] | None = None) -> None:
        """`name` is what errors call it; `tell` is given one line when others could read it and no longer can."""
        self.path = path
        self._name = name
        self._tell = tell

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from replacing it meanwhile."""
        make_folder(self.path.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(self.path.with_suffix(".lock"), flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def read(self) -> bytes | None:
        """What it holds; None where there is none. Raises `SettingsError` when it is not the user's own."""
        try:
            # A link could point to a file of somebody else's choice.
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file:
            self._keep_private(fd)
            return file.read()

    def write(self, text: str) -> None:
        """Replace it. Raises OSError that names it, as one about a full disk does not by itself."""
        temporary = self.path.with_suffix(f".{os.getpid()}.{secrets.token_hex(4)}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def identity(self) -> tuple[int, int] | None:
        """Changes whenever the file is replaced; None where there is none."""
        try:
            facts = self.path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
        return facts.st_ino, facts.st_mtime_ns

    def fault(self, allowed: str) -> SettingsError:
        """The error that says what the file must be. It never repeats what is in it."""
        return SettingsError(self._name, None, allowed, str(self.path))

    def _keep_private(self, fd: int) -> None:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
            raise self.fault("must be a file of the user who runs the router")
        if stat.S_IMODE(facts.st_mode) & 0o077:
            os.fchmod(fd, 0o600)
            if self._tell is not None:
                mode = stat.S_IMODE(facts.st_mode)
                self._tell(f"{self.path} could be read by others (mode {mode:04o}), now only by you (0600)")
