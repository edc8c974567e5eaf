"""What metrics tell of the cluster. Reads, and changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from router.cluster.kubernetes.client import Api
from router.cluster.kubernetes.cluster import KubernetesCluster
from router.telemetry.catalogue import Sample


def samples(api: Api, cluster: KubernetesCluster) -> Iterator[Sample]:
    """For one scrape; names and labels are those of the catalogue."""
    by_verb: Counter[tuple[str, str]] = Counter()
    for (verb, _, status), count in api.calls.items():
        by_verb[verb, str(status) if status else "none"] += count
    for labels, count in by_verb.items():
        yield Sample("api_requests", count, labels)
    for resource, restarts in cluster.follower.restarts().items():
        yield Sample("api_watch_restarts", restarts, (resource,))
    for resource, seconds in cluster.follower.staleness().items():
        yield Sample("api_staleness_seconds", seconds, (resource,))
    for key in cluster.left_alone:
        yield Sample("autoscaler_conflicts", 1, key)
    refused: Counter[str] = Counter()
    for problem in cluster.problems():
        refused[problem.reason] += 1
    for reason, count in refused.items():
        yield Sample("deployment_problems", count, (reason,))
