"""What has changed in the settings of services: names and values for operators, never secrets. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import NamedTuple

from router.admin.effective_settings import format_value
from router.config.service_settings import SECRET_SETTINGS
from router.model.services import Service, Version

_HIDDEN = "(secret)"


class ServiceChange(NamedTuple):
    """Changed settings of a service, or of one of its versions. `settings` has a text for each."""

    service: str
    version: str | None
    settings: tuple[str, ...]

    def fields(self) -> dict[str, object]:
        """Return the fields of a log line."""
        version = {} if self.version is None else {"version": self.version}
        return {"service": self.service, **version, "settings": self.settings}

    def __str__(self) -> str:
        version = "" if self.version is None else f", version {self.version}"
        return f"service {self.service}{version}: {'; '.join(self.settings)}"


def service_changes(before: Mapping[str, Service], after: Mapping[str, Service]) -> Iterator[ServiceChange]:
    """Yield the changed settings of the services and versions that are in both."""
    for name, service in after.items():
        previous = before.get(name)
        if previous is None or previous is service:
            continue
        if changed := tuple(_changed(previous, service)):
            yield ServiceChange(name, None, changed)
        versions = {version.name: version for version in previous.versions}
        for version in service.versions:
            if version.name in versions and (changed := tuple(_changed(versions[version.name], version))):
                yield ServiceChange(name, version.name, changed)


def _changed(before: Service | Version, after: Service | Version) -> Iterator[str]:
    for field in fields(after):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if field.name == "versions" or old == new:
            continue
        if field.name in SECRET_SETTINGS:
            old = new = _HIDDEN
        yield f"{field.name}: {format_value(old)} -> {format_value(new)}"
