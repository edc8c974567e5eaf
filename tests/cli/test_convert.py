"""`azureml-fe convert`: exit codes, the written file, and that secrets are in it only."""

import json
import os
import stat
from pathlib import Path

import pytest
import yaml

from router.cli.main import main

KEY = "a-very-secret-key"
DEPLOYMENT_CONFIG = {
    "computeType": "AKS",
    "numReplicas": 2,
    "maxQueueWaitMs": 700,
    "keys": {"primaryKey": KEY, "secondaryKey": KEY + "2"},
}
INFERENCE_CONFIG = {"entryScript": "score.py", "environment": {"environmentVariables": {"PASSWORD": "hunter2"}}}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of a service without losses in both targets, in the working directory `iris`."""
    directory = tmp_path / "iris"
    directory.mkdir()
    (directory / "deploymentconfig.json").write_text(json.dumps(DEPLOYMENT_CONFIG, indent=2))
    (directory / "inferenceconfig.json").write_text(json.dumps(INFERENCE_CONFIG))
    (directory / "score.py").write_text("def init(): pass\ndef run(data): return data\n")
    monkeypatch.chdir(directory)
    return ["deploymentconfig.json", "inferenceconfig.json"]


def test_complete_conversion_exits_with_zero(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--to", "local", *files]) == 0
    out, err = capsys.readouterr()
    assert out == "services.yaml: iris\nnext: azureml-fe local services.yaml\n"
    assert err == ""
    assert yaml.safe_load(Path("services.yaml").read_text()) == {
        "services": {
            "iris": {
                "num_replicas": 2,
                "max_request_wait_time": 700,
                "primary_key": KEY,
                "secondary_key": KEY + "2",
                "entry_script": "score.py",
                "environment": {"PASSWORD": "hunter2", "AML_APP_ROOT": "."},
            }
        }
    }
    assert main(["check", "services.yaml"]) == 0


@pytest.mark.parametrize("target", ["local", "kubernetes"])
@pytest.mark.parametrize("output", ["text", "json"])
def test_secrets_are_in_the_private_file_only(
    target: str, output: str, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    image = ["--image", "example/model:1"] if target == "kubernetes" else []
    assert main(["convert", "--to", target, "--out", "result", "--output", output, *image, *files]) == 0
    assert KEY in Path("result").read_text()
    assert stat.S_IMODE(Path("result").stat().st_mode) == 0o600
    printed = "".join(capsys.readouterr())
    assert KEY not in printed
    assert "hunter2" not in printed


def test_secrets_of_kubernetes_are_in_secrets(files: list[str]) -> None:
    assert main(["convert", "--to", "kubernetes", "--image", "example/model:1", *files]) == 0
    objects = list(yaml.safe_load_all(Path("manifests.yaml").read_text()))
    with_secrets = [each for each in objects if "hunter2" in json.dumps(each) or KEY in json.dumps(each)]
    assert [each["kind"] for each in with_secrets] == ["Secret", "Secret"]
    assert [each["metadata"]["name"] for each in with_secrets] == ["azureml-fe-keys-iris", "iris-environment"]


def test_losses_exit_with_one_unless_accepted(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config = DEPLOYMENT_CONFIG | {"sslEnabled": True, "maxReplica": 3}
    Path("deploymentconfig.json").write_text(json.dumps(config, indent=2))
    command = ["convert", "--to", "local", *files]
    assert main(command) == 1
    first, second = capsys.readouterr().err.splitlines()
    line = "azureml-fe: not converted: deploymentconfig.json, line"
    assert first.startswith(f"{line} 9: sslEnabled: HTTPS is a setting of the router, not of a service")
    assert second == f"{line} 10: maxReplica: Azure ML has no such key here; did you mean autoScaler.maxReplicas?"
    assert "# - deploymentconfig.json, line 9: sslEnabled" in Path("services.yaml").read_text()
    assert main([*command, "--force", "--accept-losses", "--output", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["services"] == ["iris"]
    assert [loss["key"] for loss in report["losses"]] == ["sslEnabled", "maxReplica"]


def test_existing_file_is_kept(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("services.yaml").write_text("mine")
    assert main(["convert", "--to", "local", *files]) == 2
    assert capsys.readouterr().err == "azureml-fe: --out = 'services.yaml': exists; --force replaces it\n"
    assert Path("services.yaml").read_text() == "mine"


def test_image_is_for_kubernetes_only(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--to", "local", "--image", "x", *files]) == 2
    assert "--image = 'x': allowed only with --to kubernetes" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["local", "kubernetes"])
def test_all_faults_are_reported_at_once_with_their_keys(
    target: str, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"computeType": "AKS", "autoScaler": {"autoscaleEnabled": True, "minReplicas": -1}, "scoringTimeoutMs": 0}
    Path("deploymentconfig.json").write_text(json.dumps(config, indent=1))
    assert main(["convert", "--to", target, *files]) == 2
    err = capsys.readouterr().err
    assert "deploymentconfig.json, line 5: autoScaler.minReplicas: service iris" in err
    assert "deploymentconfig.json, line 7: scoringTimeoutMs: service iris" in err
    assert not Path("services.yaml").exists()
    assert not Path("manifests.yaml").exists()


def test_check_accepts_the_files_and_lists_losses(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("deploymentconfig.json").write_text(json.dumps(DEPLOYMENT_CONFIG | {"sslEnabled": True}))
    assert main(["check", "--name", "flowers", *files]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("service flowers: keys (primary given, secondary given)\n")
    assert "deploymentconfig.json, line 1: sslEnabled: HTTPS is a setting of the router" in err
    assert KEY not in out + err


def test_name_is_for_files_of_azureml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.yaml").write_text("services: {a: {addresses: ['127.0.0.1:1']}}")
    assert main(["check", "--name", "b", str(tmp_path / "m.yaml")]) == 2
    assert "--name = 'b': allowed only for files of Azure ML" in capsys.readouterr().err


def test_several_files_must_be_of_azureml(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("m.yaml").write_text("services: {a: {addresses: ['127.0.0.1:1']}}")
    assert main(["check", "m.yaml", *files]) == 2
    assert "m.yaml: file: must be a file of Azure ML" in capsys.readouterr().err


def test_variable_that_only_kubernetes_allows_has_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("score.py").write_text("def init(): ...\ndef run(data): ...\n")
    Path("blue.yml").write_text(
        "name: blue\nendpoint_name: iris\ncode_configuration: {code: ., scoring_script: score.py}\n"
        "environment_variables:\n  A: b\n  my.setting: c\n"
    )
    assert main(["convert", "--to", "local", "blue.yml"]) == 2
    assert "blue.yml, line 6: environment_variables.my.setting: service iris" in capsys.readouterr().err
    main(["convert", "--to", "kubernetes", "blue.yml"])
    assert "name: my.setting" in Path("manifests.yaml").read_text()


@pytest.mark.parametrize(
    ("out", "problem"),
    [
        ("missing/a.yaml", "cannot be written: No such file or directory"),
        ("iris.yaml/a.yaml", "cannot be written: Not a directory"),
        ("..", "must be a file; it may have keys"),
        ("pipe", "must be a file; it may have keys"),
        ("-", "must be a file; it may have keys"),
    ],
)
def test_unusable_output_is_named(files: list[str], capsys: pytest.CaptureFixture[str], out: str, problem: str) -> None:
    os.mkfifo("pipe")
    Path("iris.yaml").touch()
    assert main(["convert", "--to", "local", *files, "--force", "--out", out]) == 2
    assert f"--out = '{out}': {problem}" in capsys.readouterr().err
    assert not Path("-").exists()
    assert Path("pipe").is_fifo()


@pytest.mark.parametrize("image", ["", "two words", "-a", "a\nb"])
def test_impossible_image_is_rejected(files: list[str], capsys: pytest.CaptureFixture[str], image: str) -> None:
    assert main(["convert", "--to", "kubernetes", *files, f"--image={image}"]) == 2
    assert "must be the name of an image" in capsys.readouterr().err
    assert not Path("manifests.yaml").exists()
