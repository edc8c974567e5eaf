"""`azureml-fe plan`."""

import json

import pytest

from router.cli.main import main


def run_plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan", *arguments]) == 0
    return capsys.readouterr().out


def test_plan_of_the_published_example(capsys: pytest.CaptureFixture[str]) -> None:
    text = run_plan(capsys, "--rps", "20", "--seconds", "10", "--target", "70", "--max-concurrent", "1")
    assert "replicas: 286 = ceil(20 x 10 / 0.7 / 1), 1 request at a time each\n" in text
    assert "20 requests/s of 10 s are 200 in flight on average" in text
    assert "autoscale_max_replicas: 286 or more" in text


def test_defaults_are_those_of_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_plan(capsys, "--rps", "20", "--seconds", "10") == run_plan(
        capsys, "--rps", "20", "--seconds", "10", "--target", "70", "--max-concurrent", "1", "--wait", "500",
        "--refused", "1",
    )  # fmt: skip


def test_plan_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    plan = json.loads(run_plan(capsys, "--rps", "500", "--seconds", "0.05", "--max-concurrent", "4", "--json"))
    assert (plan["replicas"], plan["in_flight"]) == (9, 25)
    assert plan["fewest_replicas"] == 7
    assert plan["waits"] > plan["refused"] > 0


def test_plan_with_one_slot_at_a_high_target(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--rps", "0.9", "--seconds", "1", "--target", "90", "--json")
    plan = json.loads(run_plan(capsys, *arguments))
    assert plan["replicas"] == 1
    assert plan["waits"] == pytest.approx(0.9)
    assert plan["refused"] == pytest.approx(0.9 * 2.718281828 ** (-0.1 * 0.5), rel=1e-6)
    assert plan["fewest_replicas"] > 1


def test_router_size_depends_on_the_load(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(run_plan(capsys, "--rps", "12000", "--seconds", "0.01", "--json"))["router_cores"] == 2.4


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--rps", "0", "--seconds", "1"], "--rps"),
        (["--rps", "x", "--seconds", "1"], "--rps"),
        (["--rps", "1", "--seconds", "nan"], "--seconds"),
        (["--rps", "1", "--seconds", "1", "--target", "101"], "--target"),
        (["--rps", "1", "--seconds", "1", "--max-concurrent", "1.5"], "--max-concurrent"),
        (["--rps", "1000000", "--seconds", "1000000"], "allowed"),
        (["--seconds", "1"], "--rps"),
    ],
)
def test_invalid_arguments_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error
