"""Reads a file whose path a user has configured.

Opening a named pipe waits for a writer, which would stop the event loop. So only regular files are accepted.
"""

import errno
import os
import stat
from pathlib import Path


def read_regular_file(path: Path | str, max_bytes: int) -> bytes:
    """Return the first `max_bytes` bytes of the file. Raises OSError if it is not a regular file or cannot be read."""
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        return file.read(max_bytes)
