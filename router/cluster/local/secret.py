"""The secret that the routers of one user on one machine share, made at the first start.

Lives here: its file. Must not live here: what it proves (`peers.handshake`).
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from router.cluster.local.private import make_folder
from router.values import SettingsError

_BYTES = 32


def peer_secret(state_dir: Path) -> bytes:
    """The secret in `state_dir`, made now if there is none. Raises `SettingsError` for a file that others can read or
    that holds too little, OSError when the folder cannot be used."""
    path = state_dir / "peer-secret"
    make_folder(state_dir)
    if not path.exists():
        # Whole or not at all, and never replaced: of two routers that start at once the first one's file stays.
        temporary = path.with_suffix(f".{os.getpid()}.{secrets.token_hex(4)}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(secrets.token_bytes(_BYTES))
            os.link(temporary, path)
        except FileExistsError:
            pass  # the other one was first
        except OSError as error:  # of a full disk: names no file by itself
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            temporary.unlink()
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
        facts = os.fstat(file.fileno())
        if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
            raise SettingsError("peer secret", None, "must be a file that only the router's user can read", str(path))
        secret = file.read()
    if len(secret) < _BYTES:
        raise SettingsError(
            "peer secret", None, f"must hold at least {_BYTES} bytes; remove it for a new one", str(path)
        )
    return secret
