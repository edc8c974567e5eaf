"""Decides how many client connections a pod closes so that their load moves to other pods. No I/O, no clock.

Clients that keep connections alive stay at the pods that they reached first. Pods that were added later get little
load, however busy the others are. So a pod whose CPU utilization is well above the mean closes a share of its busy
connections each second, after a response. The clients connect again, and the Service selects a pod for each.

The share is proportional to the excess over the mean, so a pod approaches the mean in `MOVE_SECONDS` and does not fall
below it: the utilization is measured over a shorter window. At most 1 / `MOVE_SECONDS` of the connections are closed in
a second. Close to the mean, and at a low utilization, none are.
"""

from __future__ import annotations

from collections.abc import Collection

MOVE_SECONDS = 30.0
"""Time constant of the approach to the mean."""

TOLERANCE = 0.25
"""A pod is well above the mean if it exceeds the mean by this share of the mean."""

MIN_UTILIZATION = 0.4
"""Utilization below which a pod keeps its connections, because it is fast enough."""


def share_to_move(own: float, others: Collection[float]) -> float:
    """Return the share of its busy connections that this pod should close in a second, from 0 to 1 / `MOVE_SECONDS`.

    `own`: CPU utilization of this pod, from 0 to 1. `others`: those of all other pods.
    """
    mean = (own + sum(others)) / (1 + len(others))
    if own < MIN_UTILIZATION or own <= mean * (1 + TOLERANCE):
        return 0.0
    return (own - mean) / own / MOVE_SECONDS
