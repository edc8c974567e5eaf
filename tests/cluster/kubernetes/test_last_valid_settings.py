"""The last valid settings of Deployments with invalid annotations, and that all router pods use the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.cluster.kubernetes.annotations import format_annotations, parse_annotations
from router.cluster.kubernetes.last_valid_settings import MAX_STORED_BYTES, LastValidSettings
from router.cluster.kubernetes.objects import Deployment
from router.cluster.kubernetes.service_registry import ServiceRegistry
from tests.cluster.kubernetes.object_builders import deployment


def at(
    resource_version: int, name: str = "iris", service: str = "iris", *, age: int = 1, **annotations: str
) -> Deployment:
    """Return a Deployment with this resource version."""
    return replace(deployment(name, service, age=age, **annotations), resource_version=str(resource_version))


def registry_of(deployments: Sequence[Deployment], stored: Mapping[str, str] | None = None) -> ServiceRegistry:
    """Return the registry of a pod that starts now."""
    registry = ServiceRegistry()
    for each in deployments:
        registry.on_deployment_changed(None, each)
    registry.set_stored_settings(stored or {})
    registry.refresh()
    return registry


class Leader:
    """The registry of the leader, and the ConfigMap that it writes."""

    def __init__(self, *deployments: Deployment) -> None:
        self.deployments = list(deployments)
        self.registry = registry_of(deployments)
        self.stored: dict[str, str] = {}
        self.store()

    def change(self, after: Deployment | None, index: int = 0) -> None:
        before = self.deployments[index]
        self.registry.on_deployment_changed(before, after)
        if after is None:
            del self.deployments[index]
        else:
            self.deployments[index] = after
        self.registry.refresh()
        self.store()

    def store(self) -> None:
        self.stored = self.registry.stored_settings()
        self.registry.set_stored_settings(self.stored)
        self.registry.refresh()

    def check_agrees_with_a_new_pod(self) -> None:
        new = registry_of(self.deployments, self.stored)
        assert new.services == self.registry.services
        assert new.problems() == self.registry.problems()
        scalable = [version.is_scalable for version in new.resolved["iris"].versions]
        assert scalable == [version.is_scalable for version in self.registry.resolved["iris"].versions]
        assert new.stored_settings() == self.stored


def test_pod_that_starts_later_has_the_settings_of_the_others() -> None:
    leader = Leader(at(1, scoring_timeout_ms="100", max_queue_length="5", port="8000"))
    assert leader.stored == {}
    leader.change(at(2, scoring_timeout_ms="0", max_queue_length="6", port="8000"))
    leader.check_agrees_with_a_new_pod()
    new = registry_of(leader.deployments, leader.stored)
    assert new.services["iris"].versions[0].scoring_timeout_ms == 100
    assert new.services["iris"].versions[0].max_queue_length == 5
    assert new.resolved["iris"].versions[0].port == 8000
    (problem,) = new.problems()
    assert problem.message.endswith("; the previous settings stay in effect")


def test_settings_are_removed_when_the_deployment_is_valid_again_or_deleted() -> None:
    leader = Leader(at(1, max_queue_length="5"))
    leader.change(at(2, max_queue_length="x"))
    assert list(leader.stored) == ["uid-iris"]
    leader.change(at(3, max_queue_length="7"))
    assert leader.stored == {}
    leader.change(at(4, max_queue_length="x"))
    assert registry_of(leader.deployments, leader.stored).services["iris"].versions[0].max_queue_length == 7
    leader.change(None)
    assert leader.stored == {}


def test_deployment_that_was_never_valid_has_no_stored_settings() -> None:
    leader = Leader(at(1, max_queue_length="x", scoring_timeout_ms="7"))
    assert leader.stored == {}
    leader.check_agrees_with_a_new_pod()


def test_later_settings_apply_if_the_stored_ones_are_outdated() -> None:
    leader = Leader(at(1, max_queue_length="5"))
    leader.change(at(2, max_queue_length="x"))
    outdated = leader.stored
    pod = registry_of([at(3, max_queue_length="7")], outdated)
    pod.on_deployment_changed(at(3, max_queue_length="7"), at(4, max_queue_length="x"))
    pod.refresh()
    assert pod.services["iris"].versions[0].max_queue_length == 7
    assert "7" in pod.stored_settings()["uid-iris"]


def test_stored_settings_that_arrive_later_take_effect() -> None:
    leader = Leader(at(1, max_queue_length="5"))
    leader.change(at(2, max_queue_length="x"))
    pod = registry_of(leader.deployments)
    assert pod.services["iris"].versions[0].max_queue_length == 1000
    pod.set_stored_settings(leader.stored)
    assert pod.refresh().services
    assert pod.services["iris"].versions[0].max_queue_length == 5


def test_no_secret_is_stored() -> None:
    leader = Leader(at(1, max_queue_length="5", keys_secret="my-keys"))
    leader.change(at(2, max_queue_length="5", keys_secret="my-keys", primary_key="s3cret"))
    (entry,) = leader.stored.values()
    assert "s3cret" not in entry
    assert orjson.loads(entry)["annotations"] == {
        "keys-secret": "my-keys", "max-queue-length": "5", "port": "5001", "version": "default",
    }  # fmt: skip


def test_size_is_bounded_and_the_oldest_deployments_come_first() -> None:
    settings = LastValidSettings()
    origins = ",".join(f"https://{number}.example.com" for number in range(2000))
    deployments = [
        replace(at(1, f"m-{n}", f"m-{n}", cors_allowed_origins=origins), created_at=f"2026-01-01T00:00:{n:02}Z")
        for n in range(20)
    ]
    for each in deployments:
        annotations, errors = parse_annotations(each.service, each.annotations)
        assert not errors
        settings.record(each, annotations)
    content = settings.stored_content(reversed(deployments))
    assert list(content) == [each.uid for each in deployments[: len(content)]]
    size = sum(len(uid) + len(text) for uid, text in content.items())
    assert MAX_STORED_BYTES * 0.8 < size <= MAX_STORED_BYTES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        '{"annotations":[],"service":"iris","resourceVersion":"1"}',
        '{"annotations":{}}',
        '{"annotations":{},"service":"iris","resourceVersion":"\u00b2"}',
        '{"annotations":{},"service":"No Name","resourceVersion":"1"}',
    ],
)
def test_malformed_entry_is_ignored(text: str) -> None:
    pod = registry_of([at(2, max_queue_length="x")], {"uid-iris": text})
    assert pod.services["iris"].versions[0].max_queue_length == 1000


def test_setting_that_this_release_does_not_accept_is_dropped_from_an_entry() -> None:
    entry = {"annotations": {"max-queue-length": "5", "new-setting": "1"}, "service": "iris", "resourceVersion": "1"}
    pod = registry_of([at(2, max_queue_length="x")], {"uid-iris": orjson.dumps(entry).decode()})
    assert pod.services["iris"].versions[0].max_queue_length == 5


VALUES = {
    "max_queue_length": ["5", "6", "x"],
    "scoring_timeout_ms": ["100", "0"],
    "autoscale_max_replicas": ["3", "many"],
    "num_replicas": ["2"],
    "is_default": ["true"],
    "traffic_percentile": ["10", "95"],
    "auth_enabled": ["false", "true", "perhaps"],
    "scaling_paused_until": ["2999-01-01T00:00Z", "tomorrow"],
    "misspelled": ["1"],
}
ANNOTATIONS = st.fixed_dictionaries({}, optional={name: st.sampled_from(texts) for name, texts in VALUES.items()})


@given(st.lists(st.tuples(st.integers(0, 1), ANNOTATIONS), min_size=1, max_size=8))
def test_a_new_pod_always_agrees_with_the_leader(changes: list[tuple[int, dict[str, str]]]) -> None:
    leader = Leader(at(1, "blue", age=3, version="blue"), at(1, "green", age=2, version="green"))
    for number, (index, changed) in enumerate(changes, 2):
        name = ("blue", "green")[index]
        leader.change(at(number, name, age=3 - index, version=name, **changed), index)
        leader.check_agrees_with_a_new_pod()


@given(ANNOTATIONS)
def test_annotations_are_the_same_after_parsing_and_formatting(given_ones: dict[str, str]) -> None:
    parsed, _ = parse_annotations("iris", at(1, age=1, **given_ones).annotations)
    again, errors = parse_annotations("iris", tuple(sorted(format_annotations(parsed).items())))
    assert (again, errors) == (parsed, ())
