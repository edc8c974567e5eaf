"""Fixtures of the tests of exports."""

from tests.telemetry.collector import collector  # noqa: F401
