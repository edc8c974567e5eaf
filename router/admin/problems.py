"""Groups the problems of many services that have one cause. Pure functions, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from router.model.problems import Problem

MAX_GROUPS = 30
MAX_SERVICES = 20
"""Of a group that are named."""


class ProblemGroup(NamedTuple):
    """Problems with the same cause."""

    cause: str
    note: str
    """Place and detail of the first one; empty if several services have it."""
    output: str
    """Further lines of the first one."""
    problems: int
    services: list[str]
    """The first services that have it; empty if it is a problem of the router."""
    more_services: int
    """Number of further services."""


def group_problems(problems: Iterable[Problem]) -> list[ProblemGroup]:
    """Return the groups of these problems, the ones of the router first, then those with the most problems. At most
    `MAX_GROUPS`; the last one then counts all others."""
    by_cause: dict[tuple[bool, str], list[Problem]] = {}
    for problem in problems:
        by_cause.setdefault((bool(problem.service), problem.cause), []).append(problem)
    ordered = sorted(by_cause.values(), key=lambda group: (bool(group[0].service), -len(group)))
    if len(ordered) <= MAX_GROUPS:
        return [_group(group) for group in ordered]
    others = sum(map(len, ordered[MAX_GROUPS - 1 :]))
    shown = [_group(group) for group in ordered[: MAX_GROUPS - 1]]
    return [*shown, ProblemGroup(f"{others} further problems", "", "", others, [], 0)]


def _group(problems: Sequence[Problem]) -> ProblemGroup:
    first = problems[0]
    services = list(dict.fromkeys(problem.service for problem in problems if problem.service))
    return ProblemGroup(
        first.cause,
        first.note if len(services) <= 1 else "",
        first.output,
        len(problems),
        services[:MAX_SERVICES],
        max(0, len(services) - MAX_SERVICES),
    )
