"""Keys that the router made for services whose file gives none.

Lives here: the file that holds them, and that only its owner can read it. Must not live here: who may do what with a
key (`auth`), and keys that the local file gives, which are never stored.

The file is `keys.json` in the state folder: `{"services": {NAME: {"primary": KEY, "secondary": KEY}}}`. It is
replaced as a whole, so that a reader sees the old or the new one, and a lock keeps two writers apart (the router, and
a command that makes a key anew).
"""

import contextlib
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args

from router.values import SettingsError

Which = Literal["primary", "secondary"]

KEY_BYTES = 32
"""Random bytes of a key; 256 bits, in base64url 43 characters."""

_Keys = dict[str, dict[str, str]]


class KeyStore:
    """Generated keys of all services in one state folder.

    Every method raises `SettingsError` when the file is not a keys file or not the user's own, and OSError when the
    folder cannot be used.
    """

    def __init__(self, state_dir: Path, *, tell: Callable[[str], None] | None = None) -> None:
        """`tell` is given one line when the file could be read by others and no longer can."""
        self.path = state_dir / "keys.json"
        self._tell = tell
        self._seen: tuple[int, int] | None = None

    def keys_for(self, service: str) -> tuple[str, str]:
        """Primary and secondary key of a service, made now when it has none."""
        with self._locked():
            services = self._read()
            keys = services.get(service)
            if keys is None:
                keys = services[service] = {"primary": _new_key(), "secondary": _new_key()}
                self._write(services)
            self._seen = self._identity()
        return keys["primary"], keys["secondary"]

    def existing(self, service: str) -> Mapping[Which, str]:
        """The keys that a service has, none made. Raises `SettingsError` for a service that has none."""
        with self._locked():
            services = self._read()
        if service not in services:
            known = ", ".join(sorted(services)) or "none yet"
            raise SettingsError("SERVICE", service, f"must be a service with generated keys: {known}", str(self.path))
        return {which: services[service][which] for which in get_args(Which)}

    def regenerate(self, service: str, which: Which) -> str:
        """Make one of a service's keys anew, and tell it. The former one is no longer valid, the other one still is."""
        if which not in get_args(Which):
            raise SettingsError("key", which, "must be primary or secondary")
        with self._locked():
            services = self._read()
            keys = services.setdefault(service, {"primary": _new_key(), "secondary": _new_key()})
            keys[which] = _new_key()
            self._write(services)
        return keys[which]

    def changed(self) -> bool:
        """Whether the file has been replaced since `keys_for` read it last, or it is gone."""
        return self._seen is not None and self._identity() != self._seen

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(self.path.with_suffix(".lock"), flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _read(self) -> _Keys:
        try:
            # A link could point to a file of somebody else's choice.
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return {}
        with open(fd, "rb") as file:
            self._keep_private(fd)
            content = file.read()
        try:
            services = json.loads(content)["services"]
            return {
                str(name): {which: str(keys[which]) for which in get_args(Which)} for name, keys in services.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            # The cause could quote a key.
            raise self._fault("is not a keys file; remove it to have new keys made") from None

    def _keep_private(self, fd: int) -> None:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
            raise self._fault("must be a file of the user who runs the router")
        if stat.S_IMODE(facts.st_mode) & 0o077:
            os.fchmod(fd, 0o600)
            if self._tell is not None:
                mode = stat.S_IMODE(facts.st_mode)
                self._tell(f"{self.path} could be read by others (mode {mode:04o}), now only by you (0600)")

    def _write(self, services: _Keys) -> None:
        temporary = self.path.with_suffix(f".{os.getpid()}.{secrets.token_hex(4)}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "w") as file:
                json.dump({"services": services}, file, indent=1, sort_keys=True)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _identity(self) -> tuple[int, int] | None:
        try:
            facts = self.path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
        return facts.st_ino, facts.st_mtime_ns

    def _fault(self, allowed: str) -> SettingsError:
        return SettingsError("keys file", None, allowed, str(self.path))


def _new_key() -> str:
    return secrets.token_urlsafe(KEY_BYTES)
