"""The rule for each header's name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.http.headers import (
    DROP,
    PASS,
    READ,
    UNDERSCORE,
    HeaderKinds,
    answer_kinds,
    connection_options,
    fields_named_by,
    is_chunked,
    may_be_trailer,
    request_kinds,
    without_fields,
)

NAMES = st.text("abcXYZ-_09", min_size=1, max_size=80).map(str.encode)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"Accept", PASS),
        (b"Content-Type", PASS),
        (b"Host", b"host"),
        (b"AUTHORIZATION", b"authorization"),
        (b"Transfer-Encoding", b"transfer-encoding"),
        (b"TE", DROP),
        (b"Keep-Alive", DROP),
        (b"X-Request-ID", DROP),
        (b"X-Forwarded-Host", DROP),
        (b"X-Forwarded-For", b"x-forwarded-for"),
        (b"traceparent", READ + b"traceparent"),
        (b"Origin", READ + b"origin"),
        (b"X_Auth", UNDERSCORE),
        (b"Transfer_Encoding", DROP),
        (b"x_request-id", DROP),
    ],
)
def test_what_becomes_of_a_clients_header(name: bytes, kind: bytes) -> None:
    assert request_kinds().classify(name) == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"Set-Cookie", PASS),
        (b"Content-Length", b"content-length"),
        (b"azureml-fe-error", DROP),
        (b"X-Request-Id", DROP),
        (b"X_Score", UNDERSCORE),
        (b"Origin", PASS),
        (b"Authorization", PASS),
    ],
)
def test_what_becomes_of_a_replicas_header(name: bytes, kind: bytes) -> None:
    assert answer_kinds().classify(name) == kind


@given(NAMES)
def test_letters_do_not_matter(name: bytes) -> None:
    for kinds in (request_kinds(), answer_kinds()):
        assert kinds.classify(name) == kinds.classify(name.upper()) == kinds.classify(name.lower())


@given(st.lists(NAMES, max_size=30))
def test_what_is_remembered_is_what_was_worked_out(names: list[bytes]) -> None:
    kinds = request_kinds()
    worked_out = {name: kinds.classify(name) for name in names}
    assert kinds.known.items() <= worked_out.items()
    assert all(len(name) <= 64 for name in kinds.known)


def test_memory_for_names_is_bounded() -> None:
    kinds = HeaderKinds((), ())
    for number in range(5000):
        assert kinds.classify(b"x-%d" % number) == PASS
    assert len(kinds.known) == 4096


@pytest.mark.parametrize(
    "name", [b"Content-Length", b"TRAILER", b"authorization", b"host", b"x-request-id", b"a_b", b"te"]
)
def test_what_must_not_follow_a_body(name: bytes) -> None:
    assert not may_be_trailer(name)


@pytest.mark.parametrize("name", [b"X-Checksum", b"Server-Timing", b"Digest"])
def test_what_may_follow_a_body(name: bytes) -> None:
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
def test_fields_that_connection_names(value: bytes, named: set[bytes]) -> None:
    assert fields_named_by(value) == named


@given(st.lists(st.sampled_from([b"a", b"B-c", b"d"]), max_size=6))
def test_options_of_connection_are_read_in_any_spacing(options: list[bytes]) -> None:
    expected = {option.lower() for option in options}
    assert connection_options(b" , ".join(options)) == connection_options(b",".join(options)) == expected


@given(st.lists(st.tuples(st.sampled_from([b"A", b"b", b"C-d"]), st.binary(max_size=5)), max_size=8))
def test_named_fields_are_dropped_and_the_others_stay_in_order(fields: list[tuple[bytes, bytes]]) -> None:
    lines = [name + b": " + value for name, value in fields]
    left = without_fields(lines, frozenset((b"a", b"c-d")))
    assert left == [b"b: " + value for name, value in fields if name == b"b"]


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
def test_the_one_transfer_coding(value: bytes, chunked: bool) -> None:
    assert is_chunked(value) is chunked
