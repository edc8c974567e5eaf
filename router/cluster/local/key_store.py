"""Stores the keys of services without keys in the configuration file: those that the router generates, and imported
ones.

Contains: the content of the keys file. Does not contain: the protection of the file (`private_file`), the check of
clients' keys (`auth`), and keys in the configuration file, which are never stored.

The file is `keys.json` in the state directory: `{"services": {NAME: {"primary": KEY, "secondary": KEY}}}`.
"""

import json
import secrets
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Literal, get_args

from router.auth.exported_keys import HasOtherKeysError
from router.cluster.local.private_file import PrivateFile
from router.config.schema import SettingsError, UnknownServiceError

KeyName = Literal["primary", "secondary"]

KEY_BYTES = 32
"""Random bytes of a key: 256 bits, 43 characters in base64url."""

_KeysByService = dict[str, dict[str, str]]


class KeyStore:
    """The stored keys of all services in one state directory.

    Every method raises `SettingsError` if the file is not a keys file or is owned by another user, and OSError if the
    state directory cannot be used.
    """

    def __init__(self, state_dir: Path, *, warn: Callable[[str], None] | None = None) -> None:
        """`warn` is called with one line when other users could read the file."""
        self.path = state_dir / "keys.json"
        self._file = PrivateFile(self.path, "keys file", warn=warn)
        self._loaded: tuple[int, int] | None = None

    def keys_for(self, services: Collection[str]) -> dict[str, tuple[str, str]]:
        """Return the primary and secondary key of each of these services. Generates and stores those that are missing.

        The file is read once and written at most once, whatever the number of services.
        """
        with self._file.locked():
            stored = self._read()
            missing = [service for service in services if service not in stored]
            if missing:
                stored |= {service: {"primary": _new_key(), "secondary": _new_key()} for service in missing}
                self._write(stored)
            self._loaded = self._file.identity()
        return {service: (stored[service]["primary"], stored[service]["secondary"]) for service in services}

    def stored_keys(self, service: str) -> Mapping[KeyName, str]:
        """Return the keys of a service without generating any. Raises `SettingsError` if it has none."""
        services: _KeysByService = {}
        if self._file.identity() is not None:  # a read must not create the state directory
            with self._file.locked():
                services = self._read()
        if service not in services:
            raise UnknownServiceError(service, services, "services with stored keys", str(self.path))
        return {name: services[service][name] for name in get_args(KeyName)}

    def store(self, service: str, primary: str, secondary: str, *, replace: bool) -> bool:
        """Make these the keys of a service. Return False if they are already.

        Raises `SettingsError` if the service has other keys, unless `replace`.
        """
        keys = {"primary": primary, "secondary": secondary}
        with self._file.locked():
            services = self._read()
            current = services.get(service)
            if current == keys:
                return False
            if current is not None and not replace:
                raise HasOtherKeysError(service, str(self.path))
            self._write(services | {service: keys})
        return True

    def regenerate(self, service: str, name: KeyName) -> str:
        """Replace one key of a service and return the new one. The other key stays valid."""
        if name not in get_args(KeyName):
            raise SettingsError("key", name, "must be primary or secondary")
        with self._file.locked():
            services = self._read()
            keys = services.setdefault(service, {"primary": _new_key(), "secondary": _new_key()})
            keys[name] = _new_key()
            self._write(services)
        return keys[name]

    def has_changed(self) -> bool:
        """True if the file was replaced or removed since `keys_for` last read it."""
        return self._loaded is not None and self._file.identity() != self._loaded

    def _read(self) -> _KeysByService:
        content = self._file.read()
        if content is None:
            return {}
        try:
            services = json.loads(content)["services"]
            return {
                str(service): {name: str(keys[name]) for name in get_args(KeyName)}
                for service, keys in services.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            # The cause is omitted, as its text could quote a key.
            raise self._file.error("is not a keys file; remove it to have new keys generated") from None

    def _write(self, services: _KeysByService) -> None:
        self._file.write(json.dumps({"services": services}, indent=1, sort_keys=True) + "\n")


def _new_key() -> str:
    return secrets.token_urlsafe(KEY_BYTES)
