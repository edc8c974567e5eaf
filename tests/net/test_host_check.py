"""Which names the admin port answers to."""

import pytest

from router.net.host_check import COMMAND_HEADER, HostCheck

CHECK = HostCheck(["azureml-fe-admin.azureml.svc", "Router-1", "10.0.0.5"])


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:9090",
        "10.244.3.7:9090",
        "[::1]",
        "[fd00::1:2]:9090",
        "localhost",
        "LOCALHOST:9090",
        "localhost.:9090",
        "azureml-fe-admin.azureml.svc:9090",
        "azureml-fe-admin.azureml.svc.",
        "router-1:9090",
    ],
)
def test_addresses_and_known_names_are_allowed(host: str) -> None:
    assert CHECK.problem({"Host": host}) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:9090",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "azureml-fe-admin.azureml.svc.evil.example:9090",
        "router-1.evil.example",
        "evil.example.",
        "router-1@evil.example",
        "evil.example#router-1",
        "[router-1]",
        "router-1:9090:80",
        "127.0.0.1/",
        "",
        "..",
    ],
)
def test_other_names_are_refused_with_the_name_of_the_setting(host: str) -> None:
    problem = CHECK.problem({"Host": host})
    assert problem is not None
    assert repr(host) in problem
    assert "admin_hosts" in problem


def test_long_host_is_shortened_in_the_error() -> None:
    assert len(CHECK.problem({"Host": "x" * 8000}) or "") < 400


def test_requests_that_no_page_can_send_are_allowed() -> None:
    assert CHECK.problem({}) is None
    assert CHECK.problem({"Host": "cluster.example", COMMAND_HEADER: "top"}) is None
    assert COMMAND_HEADER.startswith("Sec-")  # scripts cannot set such headers
