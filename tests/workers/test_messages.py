"""Messages between supervisor and workers: reports keep their names when pickled."""

import pickle

import pytest

from router.model.usage import ZERO
from router.workers.messages import VersionReport, VersionReports


@pytest.mark.parametrize("count", [0, 1, 3])
def test_version_reports_are_restored_with_their_names(count: int) -> None:
    reports = VersionReports(
        ((f"model-{number}", "default"), VersionReport(ZERO, number, 1, {"a": number}, {"b": 1}))
        for number in range(count)
    )
    restored = pickle.loads(pickle.dumps(reports))
    assert restored == reports
    assert [report.waiting for report in restored.values()] == list(range(count))


def test_version_reports_are_smaller_than_named_rows() -> None:
    rows = {(f"model-{number}", "default"): VersionReport(ZERO, 1, 1, {}, {}) for number in range(1000)}
    assert len(pickle.dumps(VersionReports(rows))) < len(pickle.dumps(rows))
