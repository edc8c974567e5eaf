"""`azureml-fe adopt` without a cluster."""

from pathlib import Path

import pytest

from router.cli.main import main


@pytest.mark.parametrize("kubeconfig", ["missing", "unreachable"])
def test_faults_of_the_arguments_are_reported_without_a_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kubeconfig: str
) -> None:
    (tmp_path / "unreachable").write_text(
        "{current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}], users: [{name: a, user: {}}],"
        " clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}]}"
    )
    flags = ["--kubeconfig", str(tmp_path / kubeconfig), "--router-namespace", "router"]
    assert main(["adopt", "iris", "--set", "no-value", "--traffic", "blue", "--keys-from", "none", *flags]) == 2
    errors = capsys.readouterr().err
    for argument in ("--set: must be", "--traffic = 'blue'", "--keys-from = 'none'"):
        assert errors.count(argument) == 1
    assert ("kubeconfig" in errors) == (kubeconfig == "missing")
