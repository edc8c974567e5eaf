"""Events: one kind of objects with two faces, core/v1 and events.k8s.io/v1, and the rules of both. No I/O."""

from tests.kubernetes.double.defaults import check_micro_time
from tests.kubernetes.double.errors import invalid
from tests.kubernetes.double.resources import Object, Resource

_NAMES = {
    "involvedObject": "regarding",
    "message": "note",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "reportingComponent": "reportingController",
}
_BACK = {new: old for old, new in _NAMES.items()}


def to_group(event: Object) -> Object:
    """As events.k8s.io/v1 shows it."""
    return {_NAMES.get(name, name): value for name, value in event.items()} | {"apiVersion": "events.k8s.io/v1"}


def to_core(event: Object) -> Object:
    """As it is stored."""
    return {_BACK.get(name, name): value for name, value in event.items()} | {"apiVersion": "v1"}


def complete(resource: Resource, event: Object) -> None:
    """Fill in what the server does, and refuse what it refuses. `event` is in the form of core/v1."""
    event.setdefault("involvedObject", {})
    event.setdefault("source", {})
    event.setdefault("reportingComponent", "")
    event.setdefault("reportingInstance", "")
    for name in ("eventTime", "firstTimestamp", "lastTimestamp"):
        event.setdefault(name, None)
    check_micro_time(resource, event["eventTime"])
    name, namespace = event["metadata"]["name"], event["metadata"]["namespace"]
    about = event["involvedObject"].get("namespace", "")
    if about and event["eventTime"] is None:
        agree = namespace == about
    else:
        agree = bool(about) or namespace in ("default", "kube-system")
    if not agree:
        message = f'Invalid value: "{about}": does not match event.namespace'
        raise invalid(resource, name, "involvedObject.namespace", message)
    if resource.group or event["eventTime"] is not None:
        _strict(resource, name, event)


def _strict(resource: Resource, name: str, event: Object) -> None:
    """The rules for events that came after the first ones."""
    needed = {
        "eventTime": "eventTime",
        "reportingComponent": "reportingController",
        "reportingInstance": "reportingInstance",
        "action": "action",
        "reason": "reason",
    }
    for field, shown in needed.items():
        if not event.get(field):
            raise invalid(resource, name, shown, "Required value", "FieldValueRequired")
    if resource.group:
        _only_new_fields(resource, name, event)
    if resource.group and event.get("type") not in ("Normal", "Warning"):
        raise invalid(resource, name, "type", f'Invalid value: "{event.get("type", "")}": has invalid value')
    for field, shown, most in (
        ("reason", "reason", 128),
        ("action", "action", 128),
        ("reportingInstance", "reportingInstance", 128),
        ("message", "message", 1024),
    ):
        if len(event.get(field) or "") > most:
            raise invalid(resource, name, shown, f"Too long: may not be more than {most} bytes", "FieldValueTooLong")


def _only_new_fields(resource: Resource, name: str, event: Object) -> None:
    for field in ("source", "firstTimestamp", "lastTimestamp", "count"):
        if event.get(field):
            raise invalid(resource, name, _NAMES[field], f'Invalid value: "{event[field]}": needs to be unset')
