"""`docs/metrics.md`, made from the table of metrics: `python -m router.metrics_doc > docs/metrics.md`.

Lives here: how the table is printed. Must not live here: a fact about a metric.
"""

from collections.abc import Iterable

from router.telemetry.catalogue import GROUPS, LABELS, Kind, MetricSpec
from router.telemetry.counters import CONNECT_BOUNDS, DURATION_BOUNDS, LAG_BOUNDS, ROUTE_BOUNDS

_INTRODUCTION = """\
# Metrics

Made by `python -m router.metrics_doc` from the table that `/metrics` itself is made from.

`/metrics` on the admin port speaks the text format of Prometheus, and OpenMetrics with exemplars (a trace's id) to
whoever asks for it. Each pod tells of itself: sum over pods, except where a metric is one pod's word about all
(`slots`, `replicas`, `replicas_desired`, `utilization_ratio`; take the maximum). Counters never go back while the pod
lives, whatever happens to its workers. A metric without a value is absent: those of the Kubernetes API outside a
cluster, say.
"""


def render() -> str:
    """The whole text of `docs/metrics.md`."""
    parts = [_INTRODUCTION.strip()]
    for group, specs in GROUPS.items():
        parts += [f"## {group}", _table(("Metric", "Type", "Labels", "Meaning"), map(_row, specs))]
    parts += ["## Labels", _table(("Label", "Values"), ((f"`{name}`", about) for name, about in LABELS.items()))]
    bounds = (
        ("`request_duration`, `queue_wait`, `replica_first_byte`", DURATION_BOUNDS),
        ("`route_time`", ROUTE_BOUNDS),
        ("`replica_connect`", CONNECT_BOUNDS),
        ("`event_loop_lag`", LAG_BOUNDS),
    )
    rows = ((names, ", ".join(f"{bound:g}" for bound in its)) for names, its in bounds)
    parts += ["## Buckets", _table(("Histogram", "Upper bounds, seconds"), rows)]
    return "\n\n".join(parts) + "\n"


def _row(spec: MetricSpec) -> tuple[str, ...]:
    kind = Kind.GAUGE if spec.kind is Kind.INFO else spec.kind
    return f"`{spec.full_name}`", kind, ", ".join(f"`{label}`" for label in spec.labels), spec.about


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    print(render(), end="")
