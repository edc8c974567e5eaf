"""Defaults, validation and admission of each kind. No I/O.

Only what clients can observe: defaults that they read back, and rules that they can break.
"""

import base64
import binascii
import re
import secrets
from collections.abc import Callable, Collection
from typing import Any

from tests.kube_standin.api_server.errors import ApiError, bad_request, invalid
from tests.kube_standin.api_server.resources import Object, Resource

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_QUALIFIED = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")
PLUGINS = frozenset({"DefaultTolerationSeconds", "Priority", "ServiceAccount", "TaintNodesByCondition"})
"""Default admission plugins whose effect clients of this server can observe."""
_ANY_NAME = ("roles", "rolebindings", "clusterroles", "clusterrolebindings")  # names are path segments


def check_prefix(resource: Resource, prefix: str) -> None:
    """Validate `generateName`. It may end with a hyphen. Raises `ApiError`."""
    if resource.plural in _ANY_NAME or (resource.plural == "events" and not resource.group):
        return
    if not _SUBDOMAIN.fullmatch(f"{prefix[:-2]}a" if len(prefix) > 1 and prefix.endswith("-") else prefix):
        message = f'Invalid value: "{prefix}": a lowercase RFC 1123 subdomain must consist of lower case letters'
        raise invalid(resource, "", "metadata.generateName", message)


def check_metadata(resource: Resource, obj: Object) -> None:
    """Validate name, labels and annotations. Raises `ApiError`."""
    metadata = obj["metadata"]
    name = metadata["name"]
    if resource.plural not in _ANY_NAME and not (len(name) <= 253 and _SUBDOMAIN.fullmatch(name)):
        message = f'Invalid value: "{name}": a lowercase RFC 1123 subdomain must consist of lower case letters'
        raise invalid(resource, name, "metadata.name", message)
    for what in ("labels", "annotations"):
        for key, value in (metadata.get(what) or {}).items():
            if not isinstance(value, str):
                raise cannot_be_handled(resource, f"ObjectMeta.metadata.{what} of type string")
            if not _QUALIFIED.fullmatch(key):
                raise invalid(resource, name, f"metadata.{what}", f'Invalid value: "{key}": name part must be valid')
    for value in (metadata.get("labels") or {}).values():
        if len(value) > 63 or not _LABEL_VALUE.fullmatch(value):
            raise invalid(
                resource, name, "metadata.labels", f'Invalid value: "{value}": a valid label must be at most 63'
            )


def cannot_be_handled(resource: Resource, field: str) -> ApiError:
    """The value has a wrong type."""
    return bad_request(
        f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
        f"json: cannot unmarshal into Go struct field {field}"
    )


def complete(resource: Resource, obj: Object) -> Object:
    """Set the defaults of the object's kind and validate it. Modifies and returns `obj`. Raises `ApiError`."""
    complete_kind = _BY_KIND.get(resource.kind)
    if complete_kind is not None:
        complete_kind(resource, obj)
    return obj


def _name(obj: Object) -> str:
    name: str = obj["metadata"]["name"]
    return name


def parse_replica_count(resource: Resource, obj: Object, value: Any, field: str = "spec.replicas") -> int:
    """Return a valid number of replicas. Raises `ApiError`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise cannot_be_handled(resource, f"{field} of type int32")
    if value < 0:
        message = f"Invalid value: {value}: must be greater than or equal to 0"
        raise invalid(resource, _name(obj), field, message)
    return value


def _complete_pod_spec(resource: Resource, obj: Object, spec: Object, path: str) -> None:
    if not spec.get("containers"):
        raise invalid(resource, _name(obj), f"{path}.containers", "Required value", "FieldValueRequired")
    for index, container in enumerate(spec["containers"]):
        for need in ("name", "image"):
            if not container.get(need):
                field = f"{path}.containers[{index}].{need}"
                raise invalid(resource, _name(obj), field, "Required value", "FieldValueRequired")
        container.setdefault("imagePullPolicy", "IfNotPresent" if ":" in container["image"] else "Always")
        container.setdefault("resources", {})
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        resources = container["resources"]
        for what, amount in (resources.get("limits") or {}).items():
            resources.setdefault("requests", {}).setdefault(what, amount)
        for port in container.get("ports") or []:
            port.setdefault("protocol", "TCP")
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("securityContext", {})
    spec.setdefault("schedulerName", "default-scheduler")


def _complete_pod(resource: Resource, pod: Object) -> None:
    spec = pod.setdefault("spec", {})
    _complete_pod_spec(resource, pod, spec, "spec")
    spec.setdefault("enableServiceLinks", True)
    pod.setdefault("status", {}).setdefault("phase", "Pending")
    pod["status"].setdefault("qosClass", qos_class(spec))


def qos_class(spec: Object) -> str:
    """Return the quality of service class of a pod."""
    resources = [container.get("resources") or {} for container in spec["containers"]]
    if not any(each.get("requests") or each.get("limits") for each in resources):
        return "BestEffort"
    limits = [each.get("limits") or {} for each in resources]
    are_complete = all({"cpu", "memory"} <= limit.keys() for limit in limits)
    are_equal = all((each.get("requests") or {}) == limit for each, limit in zip(resources, limits, strict=True))
    return "Guaranteed" if are_complete and are_equal else "Burstable"


def admit_pod(pod: Object, plugins: Collection[str]) -> None:
    """Add what admission plugins add to a new pod: token volume, tolerations, priority."""
    spec = pod["spec"]
    if "Priority" in plugins:
        spec.setdefault("priority", 0)
        spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    if "DefaultTolerationSeconds" in plugins:
        _add_default_tolerations(spec)
    if "ServiceAccount" in plugins:
        spec.setdefault("serviceAccountName", "default")
        _mount_token(spec)
    if "serviceAccountName" in spec:
        spec["serviceAccount"] = spec["serviceAccountName"]


def _add_default_tolerations(spec: Object) -> None:
    tolerations = spec.setdefault("tolerations", [])
    for condition in ("not-ready", "unreachable"):
        key = f"node.kubernetes.io/{condition}"
        if not any(
            each.get("key") in (key, None) and each.get("effect") in ("NoExecute", None) for each in tolerations
        ):
            wait = {"effect": "NoExecute", "tolerationSeconds": 300}
            tolerations.append({"key": key, "operator": "Exists", **wait})


def _mount_token(spec: Object) -> None:
    if spec.get("automountServiceAccountToken", True):
        name = "kube-api-access-" + "".join(secrets.choice("bcdfghjklmnpqrstvwxz2456789") for _ in range(5))
        token = {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}
        authority = {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}
        namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
        sources = [token, authority, {"downwardAPI": {"items": [namespace]}}]
        spec.setdefault("volumes", []).append({"name": name, "projected": {"sources": sources, "defaultMode": 420}})
        mount = {"name": name, "readOnly": True, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
        for container in spec["containers"]:
            container.setdefault("volumeMounts", []).append(dict(mount))


def _complete_template_owner(resource: Resource, obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    spec["replicas"] = parse_replica_count(resource, obj, spec.get("replicas", 1))
    if not spec.get("selector"):
        raise invalid(resource, _name(obj), "spec.selector", "Required value", "FieldValueRequired")
    template = spec.setdefault("template", {})
    labels = template.setdefault("metadata", {}).get("labels") or {}
    wanted = spec["selector"].get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        message = f"Invalid value: {labels}: `selector` does not match template `labels`"
        raise invalid(resource, _name(obj), "spec.template.metadata.labels", message)
    _complete_pod_spec(resource, obj, template.setdefault("spec", {}), "spec.template.spec")


def _complete_deployment(resource: Resource, deployment: Object) -> None:
    _complete_template_owner(resource, deployment)
    spec = deployment["spec"]
    strategy = spec.setdefault("strategy", {})
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxSurge", "25%")
        rolling.setdefault("maxUnavailable", "25%")
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("progressDeadlineSeconds", 600)


def _complete_secret(resource: Resource, secret: Object) -> None:
    secret.setdefault("type", "Opaque")
    data = secret.setdefault("data", {})
    for key, text in (secret.pop("stringData", None) or {}).items():
        data[key] = base64.b64encode(text.encode()).decode()
    for text in data.values():
        try:
            base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError, TypeError) as error:
            raise bad_request(
                'Secret in version "v1" cannot be handled as a Secret: illegal base64 data at input byte 0'
            ) from error
    if not data:
        del secret["data"]


def _complete_lease(resource: Resource, lease: Object) -> None:
    spec = lease.setdefault("spec", {})
    seconds = spec.get("leaseDurationSeconds")
    if seconds is not None and seconds <= 0:
        message = f"Invalid value: {seconds}: must be greater than 0"
        raise invalid(resource, _name(lease), "spec.leaseDurationSeconds", message)
    for name in ("acquireTime", "renewTime"):
        check_micro_time(resource, spec.get(name))


def check_micro_time(resource: Resource, text: Any) -> None:
    """Validate a time with exactly six digits of a second. Raises `ApiError`."""
    if text is not None and not (isinstance(text, str) and _MICRO_TIME.fullmatch(text)):
        raise bad_request(
            f'{resource.kind} in version "v1" cannot be handled as a {resource.kind}: parsing time "{text}" as '
            '"2006-01-02T15:04:05.000000Z07:00": cannot parse'
        )


def _complete_autoscaler(resource: Resource, autoscaler: Object) -> None:
    spec = autoscaler.setdefault("spec", {})
    maximum, minimum = spec.get("maxReplicas", 0), spec.setdefault("minReplicas", 1)
    if not maximum >= 1:
        message = f"Invalid value: {maximum}: must be greater than 0"
        raise invalid(resource, _name(autoscaler), "spec.maxReplicas", message)
    if maximum < minimum:
        message = f"Invalid value: {maximum}: must be greater than or equal to `minReplicas`"
        raise invalid(resource, _name(autoscaler), "spec.maxReplicas", message)
    target = spec.get("scaleTargetRef") or {}
    for need in ("kind", "name"):
        if not target.get(need):
            raise invalid(
                resource, _name(autoscaler), f"spec.scaleTargetRef.{need}", "Required value", "FieldValueRequired"
            )
    resources = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}
    spec.setdefault("metrics", [{"type": "Resource", "resource": resources}])


def _complete_namespace(_: Resource, namespace: Object) -> None:
    namespace.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
    namespace.setdefault("status", {}).setdefault("phase", "Active")
    namespace["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = _name(namespace)


def _complete_node(_: Resource, node: Object) -> None:
    node.setdefault("spec", {})


def taint_node(node: Object) -> None:
    """Add the taint that keeps pods off a new node until a controller sees that it is ready."""
    taints = node["spec"].setdefault("taints", [])
    key = "node.kubernetes.io/not-ready"
    if not any(each.get("key") == key for each in taints):
        taints.append({"key": key, "effect": "NoSchedule"})


def _complete_binding(resource: Resource, binding: Object) -> None:
    reference = binding.get("roleRef") or {}
    if not reference.get("name"):
        raise invalid(resource, _name(binding), "roleRef.name", "Required value", "FieldValueRequired")
    reference.setdefault("apiGroup", resource.group)


_BY_KIND: dict[str, Callable[[Resource, Object], None]] = {
    "Pod": _complete_pod,
    "Deployment": _complete_deployment,
    "ReplicaSet": _complete_template_owner,
    "Secret": _complete_secret,
    "Lease": _complete_lease,
    "HorizontalPodAutoscaler": _complete_autoscaler,
    "Namespace": _complete_namespace,
    "Node": _complete_node,
    "RoleBinding": _complete_binding,
    "ClusterRoleBinding": _complete_binding,
}
