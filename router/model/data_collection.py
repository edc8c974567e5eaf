"""Which requests and responses of a version are collected, as immutable values; `config.data_collector` parses them."""

from dataclasses import dataclass

REQUEST, RESPONSE = "request", "response"
"""The collections that the router itself writes. All others are written by the entry script."""

ROLLING_RATES = ("minute", "hour", "day", "month", "year")
"""The periods that can have a folder of their own."""


@dataclass(frozen=True, slots=True)
class Collection:
    """One collection. `path` is the folder of its data; "" stands for the one that its name implies."""

    name: str
    enabled: bool
    path: str = ""


@dataclass(frozen=True, slots=True)
class DataCollector:
    """The data collection of a version.

    `sampling_rate` is the share of the requests, from 0 to 1. `rolling_rate` is one of `ROLLING_RATES`.
    `capture_headers` are names of request headers in lower case.
    """

    collections: tuple[Collection, ...]
    sampling_rate: float = 1.0
    rolling_rate: str = "hour"
    capture_headers: tuple[str, ...] = ()

    def collection(self, name: str) -> Collection | None:
        """Return an enabled collection; None if there is none of this name."""
        return next((each for each in self.collections if each.name == name and each.enabled), None)

    @property
    def custom(self) -> tuple[Collection, ...]:
        """The enabled collections of the entry script."""
        return tuple(each for each in self.collections if each.enabled and each.name not in (REQUEST, RESPONSE))


PAYLOADS = DataCollector((Collection(REQUEST, True), Collection(RESPONSE, True)))
"""The effect of `collect_model_data`: all requests and responses."""
