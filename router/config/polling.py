"""The interval of the router's periodic checks."""

from typing import Final

POLL_SECONDS: Final = 1.0
"""Interval in seconds at which the router checks mounted certificates, generated keys, token issuers and Secrets. A
check costs at most a few `stat` calls, and a replaced key or certificate takes effect within a second."""
