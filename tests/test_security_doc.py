"""docs/security.md names at least one existing test for each threat, and only existing settings, metrics and files."""

import re
from pathlib import Path

import pytest

from router.config.router import ROUTER_SETTINGS
from router.telemetry.catalogue import METRICS, PREFIX

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/security.md").read_text()
ROWS = [row for row in PAGE.splitlines() if row.startswith("| ") and "`test_" in row]
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
}


@pytest.mark.parametrize("row", ROWS)
def test_each_threat_has_existing_tests(row: str) -> None:
    threat, defense, tests = row.strip("| ").split(" | ")
    names = set(re.findall(r"`(test_\w+)`", tests))
    assert threat
    assert defense
    assert names
    assert names <= TESTS, names - TESTS


def test_no_threat_lacks_a_test() -> None:
    tables = re.findall(r"^\| threat \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert len(tables) == 2
    assert [row for table in tables for row in table.splitlines()] == ROWS
    assert len(ROWS) >= 30


def test_settings_metrics_and_files_exist() -> None:
    known = {setting.name for setting in ROUTER_SETTINGS} | {"forward_authorization"}
    assert set(re.findall(r"`((?:tls|peer_tls|max|allow|https|admin|peer)_[a-z_]+)[`:]", PAGE)) <= known
    for metric in re.findall(rf"`{PREFIX}(\w+)`", PAGE):
        assert metric in METRICS
    for path in re.findall(r"`(tests/[\w./]+)`", PAGE):
        assert (ROOT / path).exists(), path
