"""The text of a scrape: Prometheus's format or OpenMetrics, written line by line.

A cluster of a thousand models has more than a hundred thousand lines, and the process that writes them also grants
slots. So the router's own lines are put together here, without an object for each; `process_*` and the choice between
the formats are prometheus-client's. Tests read the text back with its parsers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from router.telemetry.catalogue import PREFIX, Kind, MetricSpec, Sample
from router.telemetry.counters import HistogramSnapshot

Exemplars = Mapping[int, tuple[str, float, float]]
"""By bucket: a trace's id, the value, and when it was (seconds since the epoch)."""

_ESCAPED = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_ESCAPED_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})


class Format:
    """What a scrape asked for."""

    def __init__(self, accept: str) -> None:
        try:
            self._encoder, self.content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version of the format that is not made of numbers
            self._encoder, self.content_type = choose_encoder("")
        self.is_open_metrics = self.content_type.startswith("application/openmetrics-text")

    def process(self) -> bytes:
        """`process_*` of this process, and what ends the text."""
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        return bytes(self._encoder(registry))

    def head(self, spec: MetricSpec) -> Iterator[str]:
        """What stands before a metric's samples."""
        name = PREFIX + spec.name if self.is_open_metrics else spec.full_name
        kind = Kind.GAUGE if spec.kind is Kind.INFO and not self.is_open_metrics else spec.kind
        yield f"# HELP {name} {spec.about.translate(_ESCAPED if self.is_open_metrics else _ESCAPED_HELP)}\n"
        yield f"# TYPE {name} {kind}\n"


def samples(spec: MetricSpec, its: Iterable[Sample]) -> Iterator[str]:
    """The lines of a counter, a gauge or an information."""
    name = spec.full_name
    labelled = _labeller(spec.labels)
    for sample in its:
        yield f"{name}{labelled(sample.labels)} {_number(sample.value)}\n"


class HistogramLines:
    """The lines of one histogram, whatever its labels."""

    def __init__(self, spec: MetricSpec, bounds: Sequence[float], format_: Format) -> None:
        self._name = spec.full_name
        self._labels = spec.labels
        # `le` comes before all labels there are.
        edges = [*map(floatToGoString, bounds), "+Inf"]
        self._starts = [f'{self._name}_bucket{{le="{edge}",' for edge in edges]
        self._shows_exemplars = format_.is_open_metrics

    def lines(self, values: Sequence[str], histogram: HistogramSnapshot, exemplars: Exemplars) -> Iterator[str]:
        """Of one set of labels."""
        labels = _pairs(self._labels, values)
        total = 0
        for bucket, (start, count) in enumerate(zip(self._starts, histogram["counts"], strict=True)):
            total += count
            if exemplars and self._shows_exemplars and bucket in exemplars:
                trace, value, at = exemplars[bucket]
                yield f'{start}{labels}}} {total}.0 # {{trace_id="{trace}"}} {_number(value)} {at!r}\n'
            else:
                yield f"{start}{labels}}} {total}.0\n"
        yield f"{self._name}_count{{{labels}}} {total}.0\n"
        yield f"{self._name}_sum{{{labels}}} {_number(histogram['sum'])}\n"


def _labeller(names: Sequence[str]) -> Callable[[Sequence[str]], str]:
    if not names:
        return lambda _: ""
    return lambda values: f"{{{_pairs(names, values)}}}"


def _pairs(names: Sequence[str], values: Sequence[str]) -> str:
    return ",".join(sorted(f'{name}="{value.translate(_ESCAPED)}"' for name, value in zip(names, values, strict=True)))


def _number(value: float) -> str:
    if isinstance(value, float):
        text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
        return text
    return f"{int(value)}.0"
