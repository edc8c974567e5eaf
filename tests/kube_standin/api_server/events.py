"""Events: their core/v1 and events.k8s.io/v1 forms, and the rules of both. No I/O."""

from tests.kube_standin.api_server.defaults import check_micro_time
from tests.kube_standin.api_server.errors import invalid
from tests.kube_standin.api_server.resources import Object, Resource

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
    """Return the events.k8s.io/v1 form."""
    return {_NAMES.get(name, name): value for name, value in event.items()} | {"apiVersion": "events.k8s.io/v1"}


def to_core(event: Object) -> Object:
    """Return the core/v1 form, in which events are stored."""
    return {_BACK.get(name, name): value for name, value in event.items()} | {"apiVersion": "v1"}


def complete(resource: Resource, event: Object) -> None:
    """Set defaults and validate an event in core/v1 form. Raises `ApiError`."""
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
    """Check the rules that only events with an `eventTime` and those of events.k8s.io/v1 have."""
    required = {
        "eventTime": "eventTime",
        "reportingComponent": "reportingController",
        "reportingInstance": "reportingInstance",
        "action": "action",
        "reason": "reason",
    }
    for field, shown in required.items():
        if not event.get(field):
            raise invalid(resource, name, shown, "Required value", "FieldValueRequired")
    if resource.group:
        _only_new_fields(resource, name, event)
    if resource.group and event.get("type") not in ("Normal", "Warning"):
        raise invalid(resource, name, "type", f'Invalid value: "{event.get("type", "")}": has invalid value')
    for field, shown, max_length in (
        ("reason", "reason", 128),
        ("action", "action", 128),
        ("reportingInstance", "reportingInstance", 128),
        ("message", "message", 1024),
    ):
        if len(event.get(field) or "") > max_length:
            message = f"Too long: may not be more than {max_length} bytes"
            raise invalid(resource, name, shown, message, "FieldValueTooLong")


def _only_new_fields(resource: Resource, name: str, event: Object) -> None:
    for field in ("source", "firstTimestamp", "lastTimestamp", "count"):
        if event.get(field):
            raise invalid(resource, name, _NAMES[field], f'Invalid value: "{event[field]}": needs to be unset')
