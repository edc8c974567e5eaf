"""Request targets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.http.target import SERVICE_PREFIX, loggable_path, origin_form, scoring_target, split_target

NAMES = st.text("abc-019", min_size=1, max_size=20).map(str.encode)
RESTS = st.text("ab/.?&=%2F:@", max_size=30).map(str.encode)


@given(NAMES, RESTS)
def test_split_target_returns_service_and_replica_path(name: bytes, rest: bytes) -> None:
    assert split_target(SERVICE_PREFIX + name + b"/" + rest) == (name, b"/" + rest)


@given(NAMES, NAMES, RESTS)
def test_name_may_have_a_namespace_in_front(namespace: bytes, name: bytes, rest: bytes) -> None:
    target = SERVICE_PREFIX + namespace + b"/" + name + b"/" + rest
    assert split_target(target, name_parts=2) == (namespace + b"/" + name, b"/" + rest)


@pytest.mark.parametrize(
    "path", [b"", b"iris", b"iris/score", b"team-a//score", b"/iris/score", b"team-a%2Firis/score"]
)
def test_address_without_a_namespace_is_none_if_names_have_one(path: bytes) -> None:
    assert split_target(SERVICE_PREFIX + path, name_parts=2) is None


@pytest.mark.parametrize(
    "target",
    [b"", b"/", b"/score", b"/api/v1/service", b"/api/v1/service/", b"/api/v1/service/iris", b"/api/v1/service//score",
     b"/API/v1/service/iris/score", b"api/v1/service/iris/score", b"//api/v1/service/iris/score", b"*"],
)  # fmt: skip
def test_split_target_returns_none_for_other_targets(target: bytes) -> None:
    assert split_target(target) is None


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/score", b"/v1/models/x:predict"),
        (b"/score?a=/score", b"/v1/models/x:predict?a=/score"),
        (b"/score?", b"/v1/models/x:predict?"),
        (b"/score/", b"/score/"),
        (b"/scores", b"/scores"),
        (b"/", b"/"),
        (b"/v2/score", b"/v2/score"),
    ],
)
def test_scoring_path_replaces_only_the_whole_path(target: bytes, expected: bytes) -> None:
    assert scoring_target(target, b"/v1/models/x:predict") == expected


@given(st.sampled_from([b"http", b"https", b"HTTP"]), st.sampled_from([b"fe", b"fe:80", b"[::1]:8080"]), RESTS)
def test_origin_form_of_this_host_is_the_path(scheme: bytes, host: bytes, rest: bytes) -> None:
    assert origin_form(scheme + b"://" + host + b"/" + rest, host.upper()) == b"/" + rest


@pytest.mark.parametrize(
    ("target", "path"), [(b"http://fe", b"/"), (b"http://fe?a=b", b"/?a=b"), (b"http://fe/?a=b", b"/?a=b")]
)
def test_origin_form_without_a_path_is_the_root(target: bytes, path: bytes) -> None:
    assert origin_form(target, b"fe") == path


@pytest.mark.parametrize(
    "target",
    [b"http://other/", b"http://fe:80/", b"http://user@fe/", b"http://fe.other/", b"ftp://fe/", b"fe:80", b"*", b"",
     b"http:/fe/", b"http:///", b"://fe/"],
)  # fmt: skip
def test_origin_form_is_none_for_other_targets(target: bytes) -> None:
    assert origin_form(target, b"fe") is None


@given(st.binary(max_size=40), st.binary(max_size=10))
def test_origin_form_begins_with_a_slash(target: bytes, host: bytes) -> None:
    path = origin_form(target, host)
    assert path is None or path.startswith(b"/")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/api/v1/service/iris/score", b"/api/v1/service/iris/score"),
        (b"/score?key=hunter2", b"/score"),
        (b"/score#hunter2", b"/score"),
        (b"/?a?b", b"/"),
        (b"http://user:hunter2@fe/score?key=hunter2", b"/score"),
        (b"http://user:hunter2@fe", b""),
        (b"http://fe?key=hunter2/x", b"/x"),
        (b"fe:hunter2", b""),
        (b"*", b""),
        (b"", b""),
        (b"/" + b"x" * 1000, b"/" + b"x" * 255),
        (b"/" + b"x" * 254 + b"?hunter2", b"/" + b"x" * 254),
    ],
)
def test_loggable_path_has_no_query_and_no_authority(target: bytes, path: bytes) -> None:
    assert loggable_path(target) == path


@given(st.binary(max_size=40))
def test_loggable_path_never_has_what_follows_a_question_mark(target: bytes) -> None:
    assert b"hunter2" not in loggable_path(b"/score?" + target + b"hunter2")
