"""The rewriting of Location: which references name the replica, and what clients get instead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.http.location import PublicPath

OWN = (b"127.0.0.1:20001", b"fe", b"models.example.com")
IRIS = PublicPath(b"/api/v1/service/", "iris")


@pytest.mark.parametrize(
    ("location", "rewritten"),
    [
        (b"/docs", b"/api/v1/service/iris/docs"),
        (b"/", b"/api/v1/service/iris/"),
        (b"/login?next=/docs#top", b"/api/v1/service/iris/login?next=/docs#top"),
        (b"http://fe/docs/", b"/api/v1/service/iris/docs/"),
        (b"HTTPS://FE/docs/", b"/api/v1/service/iris/docs/"),
        (b"http://127.0.0.1:20001/a", b"/api/v1/service/iris/a"),
        (b"https://models.example.com", b"/api/v1/service/iris/"),
        (b"http://fe?x=1", b"/api/v1/service/iris/?x=1"),
        (b"//fe/docs", b"/api/v1/service/iris/docs"),
        (b"/api/v1/service", b"/api/v1/service/iris/api/v1/service"),
    ],
)
def test_reference_to_the_replica_gets_the_path_of_the_service(location: bytes, rewritten: bytes) -> None:
    assert IRIS.rewrite(location, OWN, b"") == rewritten


@pytest.mark.parametrize(
    "location",
    [
        b"docs/",
        b"?x=1",
        b"#top",
        b"",
        b"../up",
        b"/api/v1/service/iris",
        b"/api/v1/service/iris/docs",
        b"/api/v1/service/iris?x",
        b"http://fe/api/v1/service/iris/docs",
        b"/api/v1/service/irises/score",  # another service
        b"/api/v1/service/other/score",
        b"https://login.example.com/",
        b"http://fe:8080/docs",
        b"http://fe.example.com/docs",
        b"http://user@fe/docs",
        b"//cdn.example.com/x",
        b"ftp://fe/docs",
        b"mailto:fe",
    ],
)
def test_other_references_are_not_rewritten(location: bytes) -> None:
    assert IRIS.rewrite(location, OWN, b"") == location


@pytest.mark.parametrize(
    ("location", "rewritten"),
    [
        (b"/docs", b"/ml/api/v1/service/iris/docs"),
        (b"/api/v1/service/iris/docs", b"/ml/api/v1/service/iris/docs"),
        (b"/ml/api/v1/service/iris/docs", b"/ml/api/v1/service/iris/docs"),
        (b"/ml/api/v1/service/other/score", b"/ml/api/v1/service/other/score"),
    ],
)
def test_prefix_of_an_outer_proxy_comes_first(location: bytes, rewritten: bytes) -> None:
    assert IRIS.rewrite(location, OWN, b"/ml") == rewritten


@pytest.mark.parametrize(
    ("location", "rewritten"),
    [(b"/docs", b"/iris/docs"), (b"/iris/docs", b"/iris/docs"), (b"/irises", b"/iris/irises")],
)
def test_scoring_prefix_may_be_the_root(location: bytes, rewritten: bytes) -> None:
    assert PublicPath(b"/", "iris").rewrite(location, OWN, b"") == rewritten


@given(st.binary(max_size=40), st.sampled_from([b"", b"/ml"]))
def test_rewriting_twice_changes_nothing_more(location: bytes, outer: bytes) -> None:
    once = IRIS.rewrite(location, OWN, outer)
    assert IRIS.rewrite(once, OWN, outer) == once
