"""Reports whether the hot path of this installation is compiled (see `setup.py`)."""

from __future__ import annotations

from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec


@cache  # called at each scrape
def hot_path() -> str:
    """Return `compiled` or `interpreted`."""
    spec = find_spec("router.gateway.exchange")
    compiled = spec is not None and spec.origin is not None and spec.origin.endswith(tuple(EXTENSION_SUFFIXES))
    return "compiled" if compiled else "interpreted"
