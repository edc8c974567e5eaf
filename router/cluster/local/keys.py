"""Keys that the router made for services whose file gives none.

Lives here: what the file that holds them says. Must not live here: that only its owner can read it (`private`), who may
do what with a key (`auth`), and keys that the local file gives, which are never stored.

The file is `keys.json` in the state folder: `{"services": {NAME: {"primary": KEY, "secondary": KEY}}}`.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

from router.cluster.local.private import PrivateFile
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
        self._file = PrivateFile(self.path, "keys file", tell=tell)
        self._seen: tuple[int, int] | None = None

    def keys_for(self, service: str) -> tuple[str, str]:
        """Primary and secondary key of a service, made now when it has none."""
        with self._file.locked():
            services = self._read()
            keys = services.get(service)
            if keys is None:
                keys = services[service] = {"primary": _new_key(), "secondary": _new_key()}
                self._write(services)
            self._seen = self._file.identity()
        return keys["primary"], keys["secondary"]

    def existing(self, service: str) -> Mapping[Which, str]:
        """The keys that a service has, none made. Raises `SettingsError` for a service that has none."""
        services: _Keys = {}
        if self._file.identity() is not None:  # to look at nothing is no reason to make a folder
            with self._file.locked():
                services = self._read()
        if service not in services:
            known = ", ".join(sorted(services)) or "none yet"
            raise SettingsError("SERVICE", service, f"must be a service with generated keys: {known}", str(self.path))
        return {which: services[service][which] for which in get_args(Which)}

    def regenerate(self, service: str, which: Which) -> str:
        """Make one of a service's keys anew, and tell it. The former one is no longer valid, the other one still is."""
        if which not in get_args(Which):
            raise SettingsError("key", which, "must be primary or secondary")
        with self._file.locked():
            services = self._read()
            keys = services.setdefault(service, {"primary": _new_key(), "secondary": _new_key()})
            keys[which] = _new_key()
            self._write(services)
        return keys[which]

    def changed(self) -> bool:
        """Whether the file has been replaced since `keys_for` read it last, or it is gone."""
        return self._seen is not None and self._file.identity() != self._seen

    def _read(self) -> _Keys:
        content = self._file.read()
        if content is None:
            return {}
        try:
            services = json.loads(content)["services"]
            return {
                str(name): {which: str(keys[which]) for which in get_args(Which)} for name, keys in services.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            # The cause could quote a key.
            raise self._file.fault("is not a keys file; remove it to have new keys made") from None

    def _write(self, services: _Keys) -> None:
        self._file.write(json.dumps({"services": services}, indent=1, sort_keys=True) + "\n")


def _new_key() -> str:
    return secrets.token_urlsafe(KEY_BYTES)
