"""Records claims on names: the leader writes them, and every router serves by what the API server has stored.

An unclaimed name is served only after its claim has been stored. If a leader fails before it writes, the next one
claims the name, and no pod has served it in between. Claimed names are served even while the API server is unreachable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from router.cluster.kubernetes.access import NAMES_CONFIG_MAP
from router.cluster.kubernetes.client import ApiClient
from router.cluster.kubernetes.config_map_store import ConfigMapStore, Content
from router.cluster.kubernetes.name_claims import add_claims, claimed_name, parse_claims
from router.cluster.kubernetes.objects import NamespacedName, named_after
from router.cluster.kubernetes.service_assembler import DeploymentProblem, problem_of
from router.cluster.kubernetes.service_registry import ServiceRegistry

_CLAIM_SECONDS = 5.0
"""A name that is unclaimed for longer is a problem. Usually it takes milliseconds."""


class NameClaimer:
    """Claims the names of a registry's services while this router leads."""

    def __init__(
        self,
        api: ApiClient,
        router: NamespacedName,
        registry: ServiceRegistry,
        *,
        may_write: Callable[[], bool],
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`router` has the namespace and the name of the router. `on_change` is called when the registry has other
        claims and must be refreshed."""
        self._registry = registry
        self._on_change = on_change
        self._clock = clock
        self._unclaimed_since: float | None = None
        self._stored_in = named_after(router.name, NAMES_CONFIG_MAP)
        self.store = ConfigMapStore(
            api,
            NamespacedName(router.namespace, self._stored_in),
            may_write=may_write,
            desired=self._desired,
            on_content=self._on_content,
        )

    def on_refreshed(self) -> None:
        """Claim the names that the registry has found. Call it after each refresh."""
        if not self._registry.unclaimed:
            self._unclaimed_since = None
        else:
            if self._unclaimed_since is None:
                self._unclaimed_since = self._clock()
            self.store.wake()

    def problems(self) -> Iterable[DeploymentProblem]:
        """Yield a problem for each Deployment that gets no requests because its name cannot be claimed."""
        if self.store.content is None or self._unclaimed_since is None:
            return
        if not self.store.failure and self._clock() - self._unclaimed_since < _CLAIM_SECONDS:
            return
        reason = self.store.failure or "no router leads, or there are too many names"
        for service, deployment in self._registry.unclaimed.items():
            message = (
                f"the name {claimed_name(service)} cannot be recorded for this namespace in the ConfigMap "
                f"{self._stored_in} of the router, so this Deployment gets no requests: {reason}"
            )
            cause = f"the name cannot be recorded for this namespace, so this Deployment gets no requests: {reason}"
            yield problem_of(deployment, service, "ServiceNameUnclaimed", message, cause=cause)

    def warnings(self) -> Iterable[str]:
        """Yield a line if names are not protected because there are no claims and none can be stored."""
        if self.store.content is None and self.store.failure:
            yield (
                f"the ConfigMap {self._stored_in} cannot be created, so that another namespace may get the name of a "
                f"service that is deleted ({self.store.failure})"
            )

    def _desired(self) -> Content:
        owners = {claimed_name(service): each.namespace for service, each in self._registry.unclaimed.items()}
        return add_claims(self.store.content or {}, owners, datetime.now(UTC))

    def _on_content(self, content: Content) -> None:
        self._registry.set_claims(parse_claims(content))
        self._on_change()
