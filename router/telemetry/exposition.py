"""The text of a scrape, in the Prometheus or the OpenMetrics format, built line by line.

A scrape of a thousand models has more than a hundred thousand lines, and the process that writes them also grants
slots. So this module formats the router's own lines without an object for each line. prometheus-client provides the
metrics `process_*` and chooses the format. Tests parse the text with the parsers of prometheus-client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from router.telemetry.catalogue import PREFIX, MetricKind, MetricSpec, Sample
from router.telemetry.histogram import HistogramSnapshot


class ProcessValue(NamedTuple):
    """One of the metrics `process_*`, which have no labels."""

    name: str
    is_counter: bool
    help: str
    value: float


def process_values() -> Iterator[ProcessValue]:
    """Yield the metrics `process_*` of this process."""
    for family in ProcessCollector(registry=None).collect():
        for sample in family.samples:
            yield ProcessValue(sample.name, family.type == "counter", family.documentation, sample.value)


Exemplars = Mapping[int, tuple[str, float, float]]
"""Bucket index -> trace id, value, and time in seconds since the epoch."""

_ESCAPED = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_ESCAPED_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})


class ExpositionFormat:
    """The format that a scrape requests."""

    def __init__(self, accept: str) -> None:
        """`accept`: the request's `Accept` header."""
        try:
            self._encoder, self.content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # `accept` has a format version that is not a number
            self._encoder, self.content_type = choose_encoder("")
        self.is_open_metrics = self.content_type.startswith("application/openmetrics-text")

    def process_metrics(self) -> bytes:
        """Return the metrics `process_*` of this process, followed by the end of the text."""
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        return bytes(self._encoder(registry))

    def metric_header(self, spec: MetricSpec) -> Iterator[str]:
        """Yield the HELP and TYPE lines of a metric."""
        name = PREFIX + spec.name if self.is_open_metrics else spec.full_name
        kind = MetricKind.GAUGE if spec.kind is MetricKind.INFO and not self.is_open_metrics else spec.kind
        yield f"# HELP {name} {spec.help.translate(_ESCAPED if self.is_open_metrics else _ESCAPED_HELP)}\n"
        yield f"# TYPE {name} {kind}\n"


def sample_lines(spec: MetricSpec, samples: Iterable[Sample]) -> Iterator[str]:
    """Yield the lines of a counter, a gauge or an info metric."""
    name = spec.full_name
    format_labels = _label_formatter(spec.labels)
    for sample in samples:
        yield f"{name}{format_labels(sample.labels)} {_number(sample.value)}\n"


class HistogramLines:
    """Formats one histogram metric for any label values."""

    def __init__(self, spec: MetricSpec, bounds: Sequence[float], format_: ExpositionFormat) -> None:
        self._name = spec.full_name
        self._labels = spec.labels
        # Labels are sorted by name; `le` sorts before all labels in the catalogue.
        bounds_as_text = [*map(floatToGoString, bounds), "+Inf"]
        self._starts = [f'{self._name}_bucket{{le="{bound}",' for bound in bounds_as_text]
        self._has_exemplars = format_.is_open_metrics

    def lines(self, label_values: Sequence[str], histogram: HistogramSnapshot, exemplars: Exemplars) -> Iterator[str]:
        """Yield the lines for one combination of label values."""
        labels = _label_pairs(self._labels, label_values)
        total = 0
        for bucket, (start, count) in enumerate(zip(self._starts, histogram["counts"], strict=True)):
            total += count
            if exemplars and self._has_exemplars and bucket in exemplars:
                trace_id, value, time = exemplars[bucket]
                yield f'{start}{labels}}} {total}.0 # {{trace_id="{trace_id}"}} {_number(value)} {time!r}\n'
            else:
                yield f"{start}{labels}}} {total}.0\n"
        yield f"{self._name}_count{{{labels}}} {total}.0\n"
        yield f"{self._name}_sum{{{labels}}} {_number(histogram['sum'])}\n"


def _label_formatter(names: Sequence[str]) -> Callable[[Sequence[str]], str]:
    if not names:
        return lambda _: ""
    return lambda values: f"{{{_label_pairs(names, values)}}}"


def _label_pairs(names: Sequence[str], values: Sequence[str]) -> str:
    return ",".join(sorted(f'{name}="{value.translate(_ESCAPED)}"' for name, value in zip(names, values, strict=True)))


def _number(value: float) -> str:
    if isinstance(value, float):
        text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
        return text
    return f"{int(value)}.0"
