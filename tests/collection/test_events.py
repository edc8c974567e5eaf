"""Lines and paths of events."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from router.collection.events import BlobAddress, Event, EventKey, Layout, embedded, line, request_extra
from router.config.data_collector import parse_data_collector
from router.model.data_collection import Collection, DataCollector
from tests.collection.reader import check_event

TIME = 1653469188.25  # 2022-05-25T08:59:48.250Z
WORKSPACE = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
KEY = EventKey("iris", "blue", "request")


def event(**fields: Any) -> Event:
    defaults: dict[str, Any] = {
        "key": KEY, "time": TIME, "request_id": "19790b87-a63c-4295-9a67-febb2d8fbce0",
        "content_type": "application/json", "size": 117, "total": 117,
        "extra": request_extra("POST", "/score", [("xtenant", "a")]),
    }  # fmt: skip
    return Event(**(defaults | fields))


def parsed(an_event: Event, data: bytes | BlobAddress | None) -> dict[str, Any]:
    text = line(an_event, Layout("i", WORKSPACE).source(("iris", "blue")), data)
    assert text.endswith(b"\n")
    assert text.count(b"\n") == 1
    attributes: dict[str, Any] = json.loads(text)
    check_event(attributes, an_event.key.collection)
    return attributes


def test_event_has_the_attributes_of_the_documentation() -> None:
    attributes = parsed(event(), b'{"data": [1]}')
    assert attributes == {
        "specversion": "1.0",
        "id": attributes["id"],
        "source": f"{WORKSPACE}/onlineEndpoints/iris/deployments/blue",
        "type": "azureml.inference.request",
        "datacontenttype": "application/json",
        "time": "2022-05-25T08:59:48.250Z",
        "data": {"data": [1]},
        "path": "/score",
        "method": "POST",
        "contentrange": "bytes 0-116/117",
        "correlationid": "19790b87-a63c-4295-9a67-febb2d8fbce0",
        "xrequestid": "19790b87-a63c-4295-9a67-febb2d8fbce0",
        "xtenant": "a",
    }


@pytest.mark.parametrize(
    ("size", "total", "expected"),
    [(117, None, "bytes 0-116/*"), (0, 0, "bytes */0"), (0, 9_000_000, "bytes */9000000"), (0, None, "bytes */*")],
)
def test_content_range_shows_how_much_was_collected(size: int, total: int | None, expected: str) -> None:
    assert parsed(event(size=size, total=total), None)["contentrange"] == expected


def test_body_outside_of_the_line_is_named_by_its_address() -> None:
    an_event = event()
    attributes = parsed(an_event, BlobAddress(f"https://a/b/{an_event.id}"))
    assert (attributes["data"], attributes["datainblob"]) == (f"https://a/b/{an_event.id}", "true")


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        ("year", "2022"), ("month", "2022/05"), ("day", "2022/05/25"), ("hour", "2022/05/25/08"),
        ("minute", "2022/05/25/08/59"),
    ],
)  # fmt: skip
def test_folder_of_an_event_depends_on_the_rolling_rate(rate: str, expected: str) -> None:
    collector = DataCollector((Collection("request", True), Collection("inputs", True, "own/path")), 1.0, rate)
    layout = Layout("i")
    assert layout.folder(KEY, collector, TIME) == f"modelDataCollector/iris/blue/request/{expected}"
    assert layout.folder(KEY._replace(collection="inputs"), collector, TIME) == f"own/path/{expected}"
    namespaced = KEY._replace(service="team-a/iris")
    assert layout.folder(namespaced, collector, TIME).startswith("modelDataCollector/team-a.iris/blue/request/")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)  # fmt: skip


@given(JSON, st.sampled_from([None, 1, 4]))
def test_json_is_embedded_with_its_value_in_one_line(value: Any, indent: int | None) -> None:
    body = json.dumps(value, indent=indent, ensure_ascii=False).replace("\n", "\r\n")
    try:
        data = embedded(body.encode())
    except UnicodeEncodeError:  # a lone surrogate, which is not UTF-8
        return
    assert data is not None
    assert b"\n" not in data
    assert b"\r" not in data
    assert json.loads(data) == value


def test_digits_of_numbers_are_kept() -> None:
    assert embedded(b" [1.10, 12345678901234567890123] \n") == b"[1.10, 12345678901234567890123]"


@given(st.binary())
def test_other_bodies_are_text_or_none(body: bytes) -> None:
    data = embedded(body)
    if data is not None:
        assert b"\n" not in data
        json.loads(data)


@pytest.mark.parametrize(("body", "data"), [(b"NaN", b'"NaN"'), (b"a\nb", b'"a\\nb"'), (b"\xff", None), (b"\0", None)])
def test_text_is_a_string_and_binary_data_is_not_embedded(body: bytes, data: bytes | None) -> None:
    assert embedded(body) == data


def test_documented_event_and_settings_are_valid() -> None:
    page = (Path(__file__).parents[2] / "docs/data-collection.md").read_text()
    blocks = dict(re.findall(r"^```(json|yaml)\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    check_event(json.loads(blocks["json"]), "request")
    document = yaml.safe_load(re.search(r"```yaml\n(services:.*?)```", page, re.DOTALL)[1])  # type: ignore[index]
    collector = parse_data_collector(document["services"]["resnet"]["data_collector"])
    assert (collector.sampling_rate, collector.capture_headers) == (0.1, ("x-tenant",))
    parse_data_collector(re.search(r"data-collector: '(.*)'`", page)[1])  # type: ignore[index]
