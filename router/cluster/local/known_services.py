"""Records which services the routers of a state directory have served, for `azureml-fe token`.

A token for a service that does not exist would be refused, with no reason that shows why. Routers of several files may
share the directory, so names are only added.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from router.cluster.local.private_file import PrivateFile


class KnownServices:
    """The names of services in `services.json` of the state directory. Methods raise `SettingsError` if the file is not
    a regular file of this user, and OSError if the state directory cannot be used."""

    def __init__(self, state_dir: Path) -> None:
        self._file = PrivateFile(state_dir / "services.json", "names of services")
        self._added: set[str] = set()  # by this object

    def add(self, services: Iterable[str]) -> None:
        """Add names."""
        new = set(services) - self._added
        if not new:
            return
        with self._file.locked():
            known = self.names()
            if not new <= known:
                self._file.write(json.dumps(sorted(known | new)) + "\n")
        self._added |= new

    def names(self) -> frozenset[str]:
        """Return the names; none before a router has started."""
        content = self._file.read() if self._file.identity() is not None else None
        try:
            return frozenset(map(str, json.loads(content or b"[]")))
        except (ValueError, TypeError):
            raise self._file.error("is not a list of names; remove it") from None
