"""Validation of the statuses that controllers and kubelets write. No I/O."""

import ipaddress

from tests.kube_standin.api_server.errors import invalid
from tests.kube_standin.api_server.resources import Object, Resource

_COUNTS = ("replicas", "updatedReplicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas")


def check(resource: Resource, obj: Object) -> None:
    """Raise `ApiError` if a status breaks a rule of its kind."""
    status = obj.get("status") or {}
    if resource.kind in ("Deployment", "ReplicaSet"):
        _replicas(resource, obj["metadata"]["name"], status)
    elif resource.kind == "Pod":
        _pod(resource, obj["metadata"]["name"], status)


def _replicas(resource: Resource, name: str, status: Object) -> None:
    counts = {field: status.get(field, 0) for field in _COUNTS}
    for field, count in counts.items():
        if count < 0:
            message = f"Invalid value: {count}: must be greater than or equal to 0"
            raise invalid(resource, name, f"status.{field}", message)
        if count > counts["replicas"]:
            message = f"Invalid value: {count}: cannot be greater than status.replicas"
            raise invalid(resource, name, f"status.{field}", message)
    if counts["availableReplicas"] > counts["readyReplicas"]:
        message = f"Invalid value: {counts['availableReplicas']}: cannot be greater than readyReplicas"
        raise invalid(resource, name, "status.availableReplicas", message)


def _pod(resource: Resource, name: str, status: Object) -> None:
    for one, many in (("podIP", "podIPs"), ("hostIP", "hostIPs")):
        addresses = [each.get("ip", "") for each in status.get(many) or []]
        if status.get(one) and [status[one]] != addresses[:1]:  # the singular field takes precedence
            status[many], addresses = [{"ip": status[one]}], [status[one]]
        elif addresses and not status.get(one):
            status[one] = addresses[0]
        for index, address in enumerate(addresses):
            try:
                ipaddress.ip_address(address)
            except ValueError:
                message = f'Invalid value: "{address}": must be a valid IP address'
                raise invalid(resource, name, f"status.{many}[{index}]", message) from None
    for index, container in enumerate(status.get("containerStatuses") or []):
        for need in ("name", "image", "imageID"):
            if not isinstance(container.get(need), str):
                message = "Required value"
                raise invalid(
                    resource, name, f"status.containerStatuses[{index}].{need}", message, "FieldValueRequired"
                )
