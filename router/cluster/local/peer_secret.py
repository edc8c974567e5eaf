"""The secret that the routers of one user on one machine share, generated at the first start.

Does not contain: what it authenticates (`peers.handshake`).
"""

import os
import secrets
import stat
from pathlib import Path

from router.cluster.local.private_file import create_state_dir
from router.config.schema import SettingsError

_SECRET_BYTES = 32


def load_or_create_peer_secret(state_dir: Path) -> bytes:
    """Return the secret in `state_dir`. Generates it if there is none.

    Raises `SettingsError` if other users can read the file or the secret is too short, and OSError if the directory
    cannot be used.
    """
    path = state_dir / "peer-secret"
    create_state_dir(state_dir)
    if not path.exists():
        _create(path)
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        private = status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077
        if not private or not stat.S_ISREG(status.st_mode):
            raise SettingsError(
                "peer secret", None, "must be a regular file readable only by the user who runs the router", str(path)
            )
        secret = file.read()
    if len(secret) < _SECRET_BYTES:
        problem = f"must be at least {_SECRET_BYTES} bytes; remove it to have a new one generated"
        raise SettingsError("peer secret", None, problem, str(path))
    return secret


def _create(path: Path) -> None:
    """Create the complete file atomically, unless it exists. If two routers start at once, the file of the first one
    stays."""
    temporary = path.with_suffix(f".{os.getpid()}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
        os.link(temporary, path)
    except FileExistsError:
        pass  # another router created it first
    except OSError as error:  # the error about a full disk does not have the path
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink()
