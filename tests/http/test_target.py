"""Addresses of requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.http.target import SERVICE_PREFIX, origin_form, split_target

NAMES = st.text("abc-019", min_size=1, max_size=20).map(str.encode)
RESTS = st.text("ab/.?&=%2F:@", max_size=30).map(str.encode)


@given(NAMES, RESTS)
def test_service_and_path_of_the_replica(name: bytes, rest: bytes) -> None:
    assert split_target(SERVICE_PREFIX + name + b"/" + rest) == (name, b"/" + rest)


@pytest.mark.parametrize(
    "target",
    [b"", b"/", b"/score", b"/api/v1/service", b"/api/v1/service/", b"/api/v1/service/iris", b"/api/v1/service//score",
     b"/API/v1/service/iris/score", b"api/v1/service/iris/score", b"//api/v1/service/iris/score", b"*"],
)  # fmt: skip
def test_addresses_of_no_service(target: bytes) -> None:
    assert split_target(target) is None


@given(st.sampled_from([b"http", b"https", b"HTTP"]), st.sampled_from([b"fe", b"fe:80", b"[::1]:8080"]), RESTS)
def test_absolute_form_of_this_host_is_its_path(scheme: bytes, host: bytes, rest: bytes) -> None:
    assert origin_form(scheme + b"://" + host + b"/" + rest, host.upper()) == b"/" + rest


@pytest.mark.parametrize(
    ("target", "path"), [(b"http://fe", b"/"), (b"http://fe?a=b", b"/?a=b"), (b"http://fe/?a=b", b"/?a=b")]
)
def test_absolute_form_without_a_path(target: bytes, path: bytes) -> None:
    assert origin_form(target, b"fe") == path


@pytest.mark.parametrize(
    "target",
    [b"http://other/", b"http://fe:80/", b"http://user@fe/", b"http://fe.other/", b"ftp://fe/", b"fe:80", b"*", b"",
     b"http:/fe/", b"http:///", b"://fe/"],
)  # fmt: skip
def test_everything_else_is_not_for_this_host(target: bytes) -> None:
    assert origin_form(target, b"fe") is None


@given(st.binary(max_size=40), st.binary(max_size=10))
def test_a_path_begins_with_a_slash_whatever_comes(target: bytes, host: bytes) -> None:
    path = origin_form(target, host)
    assert path is None or path.startswith(b"/")
