"""Groups the problems of many services that have one cause. Pure functions, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

MAX_GROUPS = 30
MAX_SERVICES = 20
"""Of a group that are named."""

_OF_SERVICE = re.compile(r"service (?P<service>\S+?)(?:, version (?P<version>\S+?))?: (?P<text>.*)", re.DOTALL)
_DURATION = re.compile(r"\b\d+(?:\.\d+)? (?:ms|s|min|h)\b")


class ProblemGroup(NamedTuple):
    """Problems with the same text, except for the names of services and replicas and for durations."""

    text: str
    """Of the first one, without the service. If several services have it, without the ids of replicas."""
    problems: int
    services: list[str]
    """The first services that have it; empty if it is a problem of the router."""
    more_services: int
    """Number of further services."""


def group_problems(problems: Iterable[str]) -> list[ProblemGroup]:
    """Return the groups of these problems, the ones of the router first, then those with the most problems. At most
    `MAX_GROUPS`; the last one then counts all others."""
    collected: dict[tuple[bool, str], list[tuple[str, str]]] = {}  # service and text of each problem, by pattern
    for problem in problems:
        match = _OF_SERVICE.fullmatch(problem)
        service, text = ("", problem) if match is None else (match["service"], match["text"])
        pattern = bool(service), _DURATION.sub("a while", _without_replicas(text, service))
        collected.setdefault(pattern, []).append((service, text))
    groups = sorted(map(_group, collected.values()), key=lambda group: (bool(group.services), -group.problems))
    if len(groups) <= MAX_GROUPS:
        return groups
    others = sum(group.problems for group in groups[MAX_GROUPS - 1 :])
    return [*groups[: MAX_GROUPS - 1], ProblemGroup(f"{others} further problems", others, [], 0)]


def _group(problems: list[tuple[str, str]]) -> ProblemGroup:
    services = list(dict.fromkeys(service for service, _ in problems if service))
    service, text = problems[0]
    if len(services) > 1:
        text = _without_replicas(text, service)
    return ProblemGroup(text, len(problems), services[:MAX_SERVICES], max(0, len(services) - MAX_SERVICES))


def _without_replicas(text: str, service: str) -> str:
    """Return a text without ids of replicas, which begin with the name of their service."""
    return re.sub(rf"\b{re.escape(service)}-[\w-]+", "a replica", text) if service else text
