"""docs/security.md: each threat has a test, each test that is named exists, and so do the settings and metrics."""

import re
from pathlib import Path

import pytest

from router.settings import ROUTER_SETTINGS
from router.telemetry.catalogue import METRICS, PREFIX

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/security.md").read_text()
THREATS = PAGE.partition("## Threat by threat")[2].partition("\n## ")[0]
ROWS = [row for row in THREATS.splitlines() if row.startswith("| ") and not row.startswith("| threat")]
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
}


@pytest.mark.parametrize("row", ROWS)
def test_each_threat_has_tests_that_exist(row: str) -> None:
    threat, stopped, shown = row.strip("| ").split(" | ")
    named = re.findall(r"`(test_\w+)`", shown)
    assert named, threat
    assert stopped
    assert set(named) <= TESTS, set(named) - TESTS


def test_there_are_threats() -> None:
    assert len(ROWS) >= 20


def test_settings_metrics_and_files_exist() -> None:
    known = {setting.name for setting in ROUTER_SETTINGS} | {"forward_authorization"}
    assert set(re.findall(r"`((?:tls|peer_tls|max|allow|https|admin|peer)_[a-z_]+)[`:]", PAGE)) <= known
    for metric in re.findall(rf"`{PREFIX}(\w+)`", PAGE):
        assert metric in METRICS
    for path in re.findall(r"`(tests/[\w./]+)`", PAGE):
        assert (ROOT / path).exists(), path
