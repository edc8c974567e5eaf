"""The routing table of one worker: services by name, versions by key, and remembered targets."""

from __future__ import annotations

from router.gateway.routes import ServiceRoute, VersionRoute
from router.model.services import VersionKey

_MAX_REMEMBERED_TARGETS = 4096
_MAX_REMEMBERED_LENGTH = 256


class RoutingTable:
    """Where requests may go."""

    __slots__ = (
        "max_buffered_body_bytes", "max_payload_bytes", "name_parts", "scoring_prefix", "services", "targets",
        "versions",
    )  # fmt: skip

    def __init__(
        self, scoring_prefix: bytes, max_payload_bytes: int, max_buffered_body_bytes: int, *, name_parts: int = 1
    ) -> None:
        """`scoring_prefix` is the start of the paths of all services, whose names consist of `name_parts` parts with
        slashes between them. A body of at most `max_buffered_body_bytes` is received before its request asks for a
        slot; 0 for none."""
        self.scoring_prefix = scoring_prefix
        self.name_parts = name_parts
        self.max_payload_bytes = max_payload_bytes
        self.max_buffered_body_bytes = max_buffered_body_bytes
        self.services: dict[bytes, ServiceRoute] = {}
        self.versions: dict[VersionKey, VersionRoute] = {}
        self.targets: dict[bytes, tuple[ServiceRoute, bytes]] = {}
        """Remembered targets, with their service and the path at its replicas."""

    @property
    def service_path(self) -> str:
        """The form of the path of a service, for error messages."""
        return self.scoring_prefix.decode() + ("<name>" if self.name_parts == 1 else "<namespace>/<name>")

    def set_services(self, services: dict[bytes, ServiceRoute]) -> None:
        """Replace all services."""
        self.services = services
        self.targets.clear()

    def remember(self, target: bytes, service: ServiceRoute, path: bytes) -> None:
        """Remember a parsed target, so that later requests with the same target need not parse it."""
        if len(target) <= _MAX_REMEMBERED_LENGTH and b"?" not in target:
            if len(self.targets) >= _MAX_REMEMBERED_TARGETS:
                self.targets.clear()
            self.targets[target] = service, path
