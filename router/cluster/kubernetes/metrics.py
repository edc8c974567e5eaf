"""Samples of the metrics about the Kubernetes cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from router.cluster.kubernetes.client import ApiClient
from router.cluster.kubernetes.cluster import KubernetesCluster
from router.telemetry.catalogue import Sample


def samples(api: ApiClient, cluster: KubernetesCluster) -> Iterator[Sample]:
    """Yield the samples of one scrape. Names and labels are those of the catalogue."""
    requests: Counter[tuple[str, str]] = Counter()
    for (verb, _, status), count in api.request_counts.items():
        requests[verb, str(status) if status else "none"] += count
    for labels, count in requests.items():
        yield Sample("api_requests", count, labels)
    for resource, restarts in cluster.informers.restarts().items():
        yield Sample("api_watch_restarts", restarts, (resource,))
    for resource, seconds in cluster.staleness_seconds().items():
        yield Sample("api_staleness_seconds", seconds, (resource,))
    for key in cluster.scaling_conflicts:
        yield Sample("autoscaler_conflicts", 1, key)
    for conflict in cluster.release_conflicts():
        yield Sample("release_conflicts", 1, (conflict.namespace, conflict.holder, conflict.waiting))
    for reason, count in Counter(problem.reason for problem in cluster.problems()).items():
        yield Sample("deployment_problems", count, (reason,))
