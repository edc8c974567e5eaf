"""Rules for headers: by name, for trailers, `Connection` and `Transfer-Encoding`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.http.header_rules import (
    _MAX_REMEMBERED_LENGTH,
    _MAX_REMEMBERED_NAMES,
    DROP,
    FORWARD,
    FORWARD_AND_CAPTURE,
    UNDERSCORE,
    HeaderRules,
    connection_options,
    fields_named_by,
    is_chunked,
    may_be_trailer,
    request_rules,
    response_rules,
    without_fields,
)

NAMES = st.text("abcXYZ-_09", min_size=1, max_size=80).map(str.encode)


@pytest.mark.parametrize(
    ("name", "action"),
    [
        (b"Accept", FORWARD),
        (b"Content-Type", FORWARD),
        (b"Host", b"host"),
        (b"AUTHORIZATION", b"authorization"),
        (b"Transfer-Encoding", b"transfer-encoding"),
        (b"TE", DROP),
        (b"Keep-Alive", DROP),
        (b"X-Request-ID", DROP),
        (b"X-Forwarded-Host", DROP),
        (b"X-Forwarded-For", DROP),
        (b"X-Forwarded-Scheme", DROP),
        (b"x_forwarded_user", DROP),
        (b"Forwarded", DROP),
        (b"X-Real-IP", DROP),
        (b"X-Forward", FORWARD),
        (b"traceparent", FORWARD_AND_CAPTURE + b"traceparent"),
        (b"Origin", FORWARD_AND_CAPTURE + b"origin"),
        (b"X_Auth", UNDERSCORE),
        (b"Transfer_Encoding", DROP),
        (b"x_request-id", DROP),
    ],
)
def test_action_for_a_request_header(name: bytes, action: bytes) -> None:
    assert request_rules().classify(name) == action


@pytest.mark.parametrize(
    ("name", "action"),
    [
        (b"X-Forwarded-For", b"x-forwarded-for"),
        (b"FORWARDED", b"forwarded"),
        (b"X_Forwarded_For", DROP),
        (b"X-Forwarded-Client-Cert", FORWARD),
        (b"X-Request-ID", DROP),
    ],
)
def test_action_for_a_request_header_of_a_trusted_proxy(name: bytes, action: bytes) -> None:
    assert request_rules(trusted_proxy=True).classify(name) == action


@pytest.mark.parametrize(
    ("name", "action"),
    [
        (b"Set-Cookie", FORWARD),
        (b"Content-Length", b"content-length"),
        (b"azureml-fe-error", DROP),
        (b"X-Request-Id", DROP),
        (b"X_Score", UNDERSCORE),
        (b"Origin", FORWARD),
        (b"Authorization", FORWARD),
    ],
)
def test_action_for_a_response_header(name: bytes, action: bytes) -> None:
    assert response_rules().classify(name) == action


@given(NAMES)
def test_action_does_not_depend_on_case(name: bytes) -> None:
    for rules in (request_rules(), response_rules()):
        assert rules.classify(name) == rules.classify(name.upper()) == rules.classify(name.lower())


@given(st.lists(NAMES, max_size=30))
def test_remembered_actions_equal_classified_ones(names: list[bytes]) -> None:
    rules = request_rules()
    expected = {name: rules.classify(name) for name in names}
    assert rules.actions.items() <= expected.items()
    assert all(len(name) <= _MAX_REMEMBERED_LENGTH for name in rules.actions)


def test_number_of_remembered_names_is_limited() -> None:
    rules = HeaderRules((), ())
    for number in range(_MAX_REMEMBERED_NAMES + 1):
        assert rules.classify(b"x-%d" % number) == FORWARD
    assert len(rules.actions) == _MAX_REMEMBERED_NAMES


@pytest.mark.parametrize(
    "name",
    [b"Content-Length", b"TRAILER", b"authorization", b"host", b"x-request-id", b"a_b", b"te", b"X-Forwarded-Ssl"],
)
def test_forbidden_trailers(name: bytes) -> None:
    assert not may_be_trailer(name)


@pytest.mark.parametrize("name", [b"X-Checksum", b"Server-Timing", b"Digest"])
def test_permitted_trailers(name: bytes) -> None:
    assert may_be_trailer(name)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (b"close", set()),
        (b"keep-alive", set()),
        (b"Keep-Alive, Upgrade", set()),
        (b"upgrade , X-Hop,,  close,x-two", {b"x-hop", b"x-two"}),
        (b"", set()),
        (b",", set()),
    ],
)
def test_fields_named_by_connection(value: bytes, named: set[bytes]) -> None:
    assert fields_named_by(value) == named


@given(st.lists(st.sampled_from([b"a", b"B-c", b"d"]), max_size=6))
def test_connection_options_do_not_depend_on_spacing_and_case(options: list[bytes]) -> None:
    expected = {option.lower() for option in options}
    assert connection_options(b" , ".join(options)) == connection_options(b",".join(options)) == expected


@given(st.lists(st.tuples(st.sampled_from([b"A", b"b", b"C-d"]), st.binary(max_size=5)), max_size=8))
def test_without_fields_keeps_the_others_in_order(fields: list[tuple[bytes, bytes]]) -> None:
    lines = [name + b": " + value for name, value in fields]
    remaining = without_fields(lines, frozenset((b"a", b"c-d")))
    assert remaining == [b"b: " + value for name, value in fields if name == b"b"]


@pytest.mark.parametrize(
    ("value", "chunked"),
    [
        (b"chunked", True),
        (b"Chunked", True),
        (b" chunked\t", True),
        (b"gzip, chunked", False),
        (b"chunked;a", False),
        (b"", False),
    ],
)
def test_is_chunked_accepts_only_chunked_as_the_single_coding(value: bytes, chunked: bool) -> None:
    assert is_chunked(value) is chunked
