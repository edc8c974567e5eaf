"""A file in the state directory that is readable only by its owner.

A write replaces the whole file, so that readers see either the old or the new content. A lock file next to it keeps the
router and a command from writing at the same time. Does not contain: the format of the content (`key_store`,
`token_key_file`).
"""

import contextlib
import fcntl
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from router.config.schema import SettingsError


def create_state_dir(state_dir: Path) -> None:
    """Create the state directory unless it exists, readable only by its owner. Check that files can be created in it.

    Raises OSError with the name of the setting otherwise.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"state_dir: {state_dir} cannot be created: {error.strerror}; allowed: a directory") from error
    try:
        tempfile.TemporaryFile(dir=state_dir).close()
    except OSError as error:
        problem = f"cannot be written: {error.strerror}; allowed: a directory in which this user may create files"
        raise OSError(f"state_dir: {state_dir} {problem}") from error


class PrivateFile:
    """A private file. Every method raises OSError if the state directory or the file cannot be used."""

    def __init__(self, path: Path, name: str, *, warn: Callable[[str], None] | None = None) -> None:
        """`name` is the name of the file in errors. `warn` is called with one line when `read` finds that other users
        could read the file."""
        self.path = path
        self._name = name
        self._warn = warn

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the file, which every writer takes. Waits for another writer."""
        create_state_dir(self.path.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(self.path.with_suffix(".lock"), flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def read(self) -> bytes | None:
        """Return the content, None if there is no file. If other users can read the file, first set its mode to 0600.

        Raises `SettingsError` if the path is not a regular file of the user who runs this process.
        """
        try:
            # Without following links: another user could make the link point to any file.
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file:
            self._restrict_mode(fd)
            return file.read()

    def write(self, text: str) -> None:
        """Replace the file. An OSError has its path; that of a full disk would not have it."""
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
        """Return a value that changes whenever the file is replaced; None if there is no file."""
        try:
            status = self.path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    def error(self, problem: str) -> SettingsError:
        """Return an error about the file, for example "must be text". It never quotes the content, which is secret."""
        return SettingsError(self._name, None, problem, str(self.path))

    def _restrict_mode(self, fd: int) -> None:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise self.error("must be a regular file owned by the user who runs the router")
        if stat.S_IMODE(status.st_mode) & 0o077:
            os.fchmod(fd, 0o600)
            if self._warn is not None:
                mode = stat.S_IMODE(status.st_mode)
                self._warn(f"{self.path} was readable by other users (mode {mode:04o}); its mode is 0600 now")
