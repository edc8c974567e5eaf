"""Whether this pod is ready (`/readyz`): should load balancers send clients to it, and if not, why?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from router.admin.overview import ProbesOf, ProblemSource, no_probes
from router.net.certificate_reloader import CertificateReloader
from router.scaling.self.loop import SelfScalingLoop
from router.telemetry.catalogue import Sample
from router.workers.pool import WorkerPool

Lines = Callable[[], Iterable[str]]


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """What a cluster adds to readiness, problems and metrics. Each text is one line for operators."""

    unmet_conditions: Lines = tuple
    """Why the pod is not ready; empty if the cluster lets it be ready."""
    warnings: Lines = tuple
    """Problems in spite of which the pod is ready."""
    problems: ProblemSource = tuple
    """Problems of models."""
    samples: Callable[[], Iterable[Sample]] = tuple
    """Samples of metrics. `telemetry.catalogue` has their names."""
    service_settings_source: str = "file"
    """Where services have their settings, other than in the dynamic configuration."""
    probes: ProbesOf = no_probes
    """The last readiness probe of each replica of a version, by id, as far as the cluster probes replicas itself."""


class Readiness:
    """Decides whether this pod is ready."""

    def __init__(
        self,
        cluster: ClusterStatus,
        workers: WorkerPool,
        self_scaling: SelfScalingLoop,
        certificates: Sequence[CertificateReloader],
    ) -> None:
        self._cluster = cluster
        self._certificates = certificates
        self._workers = workers
        self._self_scaling = self_scaling
        self._stopping = False

    @property
    def stopping(self) -> bool:
        """True once `begin_stop` was called."""
        return self._stopping

    def begin_stop(self) -> None:
        """Become unready until this process exits."""
        self._stopping = True

    def unmet_conditions(self) -> Sequence[str]:
        """Return why this pod is not ready, one line for each reason; empty if it is ready.

        A model without replicas is no reason: requests for it get a 503 response, and other models must stay reachable.
        """
        if self._stopping:
            return ["the router is stopping"]
        conditions = list(self._cluster.unmet_conditions())
        conditions += [reason for certificate in self._certificates for reason in certificate.unmet_conditions()]
        if not self._workers.accepting:
            conditions.append("no worker accepts clients")
        return conditions or list(self._self_scaling.unmet_conditions())

    def warnings(self) -> Sequence[str]:
        """Return problems in spite of which this pod may be ready, one line each."""
        return list(self._cluster.warnings())
