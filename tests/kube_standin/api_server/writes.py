"""What a create, an update, a patch and a delete do to an object of any kind. No I/O. Times are RFC 3339 texts.

Functions never modify `old` and stored objects. They may modify `fresh`, the object from the client.
"""

import copy
import secrets
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from tests.kube_standin.api_server import defaults, events, managed_fields, schemas, status_validation
from tests.kube_standin.api_server.errors import ApiError, bad_request, conflict, forbidden, invalid
from tests.kube_standin.api_server.resources import Object, Resource

_SUFFIX_CHARACTERS = "bcdfghjklmnpqrstvwxz2456789"  # of generated names: no vowels, no similar characters
_MAX_PREFIX_LENGTH = 63 - 5  # characters of `generateName` that are used
# Set by the server. Updates do not change them.
_SERVER_SET_METADATA = (
    "uid",
    "creationTimestamp",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
)
_MUTABLE_POD_SPEC_FIELDS = ("activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations", "schedulingGates")
# Fields that are present even if they are zero.
_INITIAL_STATUS: dict[str, Object] = {
    "ReplicaSet": {"replicas": 0},
    "HorizontalPodAutoscaler": {"desiredReplicas": 0, "currentMetrics": None},
    "PodDisruptionBudget": {"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0},
    "Service": {"loadBalancer": {}},
}


@dataclass(frozen=True, slots=True)
class Writer:
    """The manager and the time of a write, and how unknown fields are handled."""

    manager: str
    now: str  # RFC 3339
    field_validation: str = "Warn"  # Strict: refuse; Warn: drop with a warning; Ignore: drop
    warnings: list[str] = field(default_factory=list)


def decode(resource: Resource, obj: Any, writer: Writer) -> Any:
    """Return a client's object without unknown fields. Raises `ApiError` for wrong types."""
    unknown: list[str] = []
    decoded = schemas.decode_object(resource, obj, unknown)
    warnings = [f'unknown field "{path}"' for path in unknown]
    if warnings and writer.field_validation == "Strict":
        raise bad_request(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
            f"strict decoding error: {', '.join(warnings)}"
        )
    if writer.field_validation == "Warn":
        writer.warnings.extend(warnings)
    return decoded


def new_object(
    resource: Resource, obj: Object, namespace: str, writer: Writer, plugins: Collection[str] = defaults.PLUGINS
) -> Object:
    """Return a new object for the store. `plugins` are the enabled admission plugins."""
    obj = with_type(resource, decode(resource, obj, writer))
    metadata = dict(obj.get("metadata") or {})
    if metadata.get("namespace") not in (None, "", namespace) and resource.namespaced:
        raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
    if resource.namespaced:
        metadata["namespace"] = namespace
    if metadata.get("resourceVersion"):
        raise bad_request("resourceVersion should not be set on objects to be created")
    if metadata.get("generateName"):
        defaults.check_prefix(resource, metadata["generateName"])
    if not metadata.get("name") and metadata.get("generateName"):
        suffix = "".join(secrets.choice(_SUFFIX_CHARACTERS) for _ in range(5))
        metadata["name"] = metadata["generateName"][:_MAX_PREFIX_LENGTH] + suffix
    if not metadata.get("name"):
        message = "Required value: name or generateName is required"
        raise invalid(resource, "", "metadata.name", message, "FieldValueRequired")
    for name in _SERVER_SET_METADATA:
        metadata.pop(name, None)
    metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": writer.now}
    if resource.counts_generations:
        metadata["generation"] = 1
    obj["metadata"] = metadata
    if resource.has_status and not resource.keeps_status_of_creation:
        obj["status"] = dict(_INITIAL_STATUS.get(resource.kind, {}))
    defaults.check_metadata(resource, obj)
    _complete(resource, obj)
    if resource.kind == "Pod":
        defaults.admit_pod(obj, plugins)
    elif resource.kind == "Node" and "TaintNodesByCondition" in plugins:
        defaults.taint_node(obj)
    return _with_managers(resource, {}, obj, writer, "")


def with_type(resource: Resource, obj: Object) -> Object:
    """Return a copy in storage form, with `apiVersion` and `kind`. Raises `ApiError` for another type."""
    if not isinstance(obj, dict):
        raise bad_request("the object provided is unrecognized (must be of type " + resource.kind + ")")
    if obj.get("apiVersion", resource.api_version) != resource.api_version:
        raise bad_request(
            f"the API version in the data ({obj['apiVersion']}) does not match the expected API version "
            f"({resource.api_version})"
        )
    if obj.get("kind", resource.kind) != resource.kind:
        raise bad_request(
            f'{obj["kind"]} in version "{resource.version}" cannot be handled as a {resource.kind}: no kind match'
        )
    typed = copy.deepcopy(obj) | {"apiVersion": resource.api_version, "kind": resource.kind}
    return events.to_core(typed) if resource.group == "events.k8s.io" else typed


def _complete(resource: Resource, obj: Object) -> None:
    if resource.plural == "events":
        events.complete(resource, obj)
    else:
        defaults.complete(resource, obj)


def updated_object(
    resource: Resource, subresource: str, old: Object, fresh: Object, writer: Writer, *, is_patch: bool
) -> Object:
    """Return the object to store instead of `old` when a client sends `fresh`, or `old` if nothing changes."""
    name = old["metadata"]["name"]
    metadata = dict(fresh.get("metadata") or {})
    if metadata.get("name", name) != name:
        raise bad_request(f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})")
    uid = old["metadata"]["uid"]
    if is_patch and metadata.get("uid", uid) != uid:  # a precondition in a PUT, an ordinary field in a patch
        raise invalid(resource, name, "metadata.uid", f'Invalid value: "{metadata["uid"]}": field is immutable')
    check_version(resource, old, metadata)
    metadata |= {"name": name}
    for kept in ("namespace", "resourceVersion", *_SERVER_SET_METADATA):
        if kept in old["metadata"]:
            metadata[kept] = old["metadata"][kept]
        else:
            metadata.pop(kept, None)
    fresh["metadata"] = metadata
    fresh = _restrict_to_subresource(resource, subresource, old, fresh)
    defaults.check_metadata(resource, fresh)
    _complete(resource, fresh)
    if subresource == "status":
        status_validation.check(resource, fresh)
    _check_immutable_fields(resource, subresource, old, fresh)
    if fresh == old:
        return old
    if resource.counts_generations and _is_new_generation(resource, old, fresh):
        fresh["metadata"]["generation"] = old["metadata"]["generation"] + 1
    return _with_managers(resource, old, fresh, writer, subresource)


def check_version(resource: Resource, old: Object, metadata: Object) -> None:
    """Raise `ApiError` if the client has another version of the object, or another object of the same name."""
    name = old["metadata"]["name"]
    version = metadata.get("resourceVersion")
    if version and version != old["metadata"]["resourceVersion"]:
        raise conflict(resource, name)
    if metadata.get("uid") and metadata["uid"] != old["metadata"]["uid"]:
        why = (
            f"Precondition failed: UID in precondition: {metadata['uid']}, UID in object meta: {old['metadata']['uid']}"
        )
        raise conflict(resource, name, why)


def _restrict_to_subresource(resource: Resource, subresource: str, old: Object, fresh: Object) -> Object:
    """Return `fresh` with only the changes that this subresource allows."""
    if subresource == "status":
        metadata = fresh["metadata"] | {"labels": old["metadata"].get("labels")}
        if "ownerReferences" in old["metadata"]:
            metadata["ownerReferences"] = old["metadata"]["ownerReferences"]
        if not metadata["labels"]:
            del metadata["labels"]
        rest = {name: value for name, value in old.items() if name not in ("metadata", "status")}
        return copy.deepcopy(rest) | {"metadata": metadata, "status": fresh.get("status", {})}
    if subresource == "resize":
        return _apply_resize(resource, old, fresh)
    if resource.has_status and "status" in old:
        fresh["status"] = old["status"]
    elif resource.has_status:
        fresh.pop("status", None)
    return fresh


def _apply_resize(resource: Resource, old: Object, fresh: Object) -> Object:
    """Return `old` with the containers' resources of `fresh`. Other changes are dropped."""
    wanted = copy.deepcopy(old)
    if len(fresh["spec"]["containers"]) != len(old["spec"]["containers"]):
        raise _pod_is_immutable(resource, old)
    for index, container in enumerate(fresh["spec"]["containers"]):
        wanted["spec"]["containers"][index]["resources"] = container.get("resources", {})
        if "resizePolicy" in container:
            wanted["spec"]["containers"][index]["resizePolicy"] = container["resizePolicy"]
    _check_resize(resource, old, wanted)
    return wanted


def _check_resize(resource: Resource, old: Object, wanted: Object) -> None:
    name = old["metadata"]["name"]
    statuses_of_containers = old["status"].get("containerStatuses") or []
    running = next((each for each in statuses_of_containers if "running" in (each.get("state") or {})), None)
    if running is not None and "resources" not in running:
        why = "Forbidden: Pod running on node without support for resize"
        raise invalid(resource, name, "spec", why, "FieldValueForbidden")
    for index, container in enumerate(wanted["spec"]["containers"]):
        before, path = old["spec"]["containers"][index]["resources"], f"spec.containers[{index}].resources"
        for what in ("requests", "limits"):
            amounts, old_amounts = container["resources"].get(what, {}), before.get(what, {})
            if old_amounts.keys() - amounts.keys():
                why = f"Forbidden: resource {what} cannot be removed"
                raise invalid(resource, name, f"{path}.{what}", why, "FieldValueForbidden")
            if any(amounts[key] != old_amounts.get(key) for key in amounts.keys() - {"cpu", "memory"}):
                why = "Forbidden: only cpu and memory resources are mutable"
                raise invalid(resource, name, "spec", why, "FieldValueForbidden")
    if defaults.qos_class(wanted["spec"]) != old["status"]["qosClass"]:
        why = 'Invalid value: "": Pod QOS Class may not change as a result of resizing'
        raise invalid(resource, name, "spec", why)


def _pod_is_immutable(resource: Resource, pod: Object) -> ApiError:
    message = (
        "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
        "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing "
        "tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
    )
    return invalid(resource, pod["metadata"]["name"], "spec", message, "FieldValueForbidden")


def _check_immutable_fields(resource: Resource, subresource: str, old: Object, fresh: Object) -> None:
    name = old["metadata"]["name"]
    if resource.kind in ("Deployment", "ReplicaSet") and fresh["spec"]["selector"] != old["spec"]["selector"]:
        message = "Invalid value: field is immutable"
        raise invalid(resource, name, "spec.selector", message)
    if resource.kind == "Pod" and subresource == "" and _immutable_part(fresh["spec"]) != _immutable_part(old["spec"]):
        raise _pod_is_immutable(resource, old)
    if resource.kind == "Secret" and fresh["type"] != old["type"]:
        raise invalid(resource, name, "type", "Invalid value: field is immutable")
    if resource.kind in ("RoleBinding", "ClusterRoleBinding") and fresh["roleRef"] != old["roleRef"]:
        raise invalid(resource, name, "roleRef", "Invalid value: cannot change roleRef")


def _immutable_part(spec: Object) -> Object:
    containers = [container | {"image": ""} for container in spec["containers"]]
    return {key: value for key, value in spec.items() if key not in _MUTABLE_POD_SPEC_FIELDS} | {
        "containers": containers
    }


def _is_new_generation(resource: Resource, old: Object, fresh: Object) -> bool:
    if fresh.get("spec") != old.get("spec"):
        return True
    return resource.kind == "Deployment" and fresh["metadata"].get("annotations") != old["metadata"].get("annotations")


def _with_managers(resource: Resource, old: Object, fresh: Object, writer: Writer, subresource: str) -> Object:
    entries = managed_fields.managed_fields_after_update(
        old["metadata"].get("managedFields", []) if old else [],
        _writable_part(resource, subresource, old),
        _writable_part(resource, subresource, fresh),
        manager=writer.manager,
        api_version=resource.api_version,
        subresource=subresource,
        now=writer.now,
    )
    fresh["metadata"] = fresh["metadata"] | {"managedFields": entries}
    return fresh


def _writable_part(resource: Resource, subresource: str, obj: Object) -> Object:
    """Return the part that is written through a subresource, or through the main resource: all but the status."""
    if subresource or not resource.has_status or resource.keeps_status_of_creation:
        return obj
    return {name: value for name, value in obj.items() if name != "status"}


# The subresource `scale`.


def scale_of(resource: Resource, obj: Object) -> Object:
    """Return the Scale of a Deployment or ReplicaSet."""
    metadata = {
        name: obj["metadata"][name] for name in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    }
    replicas = obj["spec"]["replicas"]
    labels = obj["spec"]["selector"].get("matchLabels") or {}
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": replicas} if replicas else {},
        "status": {
            "replicas": obj.get("status", {}).get("replicas", 0),
            "selector": ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
        },
    }


def scaled_object(resource: Resource, old: Object, scale: Any, writer: Writer) -> Object:
    """Return the Deployment or ReplicaSet to store after a client has sent this Scale, or `old` if nothing changes."""
    if not isinstance(scale, dict) or scale.get("kind", "Scale") != "Scale":
        raise bad_request("the object provided is unrecognized (must be of type Scale)")
    check_version(resource, old, scale.get("metadata") or {})
    replicas = (scale.get("spec") or {}).get("replicas", 0)
    if not isinstance(replicas, int) or isinstance(replicas, bool):
        raise bad_request(
            'Scale in version "v1" cannot be handled as a Scale: json: cannot unmarshal into Go struct field '
            "ScaleSpec.spec.replicas of type int32"
        )
    if replicas < 0:
        as_scale = Resource("autoscaling", "v1", "scales", "Scale")
        message = f"Invalid value: {replicas}: must be greater than or equal to 0"
        raise invalid(as_scale, old["metadata"]["name"], "spec.replicas", message)
    fresh = copy.deepcopy(old)
    if replicas != old["spec"]["replicas"]:
        fresh["spec"]["replicas"] = replicas
        fresh["metadata"]["generation"] += 1
    # Kubernetes 1.36.2 gives the field to this manager even if the number is the same.
    without_count = old | {"spec": {name: value for name, value in old["spec"].items() if name != "replicas"}}
    fresh = _with_managers(resource, without_count, fresh, writer, "scale")
    return old if fresh == old else fresh


# Removal.


def terminating_object(
    resource: Resource, old: Object, options: Object, writer: Writer, deletion_time: str
) -> Object | None:
    """Return the terminating object that remains after a delete, or None if it is removed immediately.

    `deletion_time` is the end of its grace period.
    """
    metadata = old["metadata"]
    preconditions = options.get("preconditions") or {}
    check_version(resource, old, preconditions)
    finalizers = list(metadata.get("finalizers") or [])
    policy = options.get("propagationPolicy")
    if resource.kind in ("Deployment", "ReplicaSet"):
        for wanted, name in (("Foreground", "foregroundDeletion"), ("Orphan", "orphan")):
            if policy == wanted and name not in finalizers:
                finalizers.append(name)
    grace = grace_of(resource, old, options)
    if resource.kind == "Namespace" and old["spec"].get("finalizers"):
        new_metadata = metadata | {"deletionTimestamp": metadata.get("deletionTimestamp", writer.now)}
        return old | {"metadata": new_metadata, "status": old["status"] | {"phase": "Terminating"}}
    if not grace and not finalizers:
        return None
    previous_grace = metadata.get("deletionGracePeriodSeconds")
    if previous_grace is not None and previous_grace <= grace and finalizers == (metadata.get("finalizers") or []):
        return old
    return with_deletion_time(
        resource,
        old | {"metadata": metadata | ({"finalizers": finalizers} if finalizers else {})},
        grace,
        deletion_time,
    )


def with_deletion_time(resource: Resource, old: Object, grace: int, deletion_time: str) -> Object:
    """Return the object with a deletion timestamp. A pod gets one even without a grace period."""
    metadata = old["metadata"]
    new_metadata = metadata | {"deletionTimestamp": deletion_time, "deletionGracePeriodSeconds": grace}
    if resource.counts_generations and "deletionTimestamp" not in metadata:
        new_metadata["generation"] = metadata["generation"] + 1
    return old | {"metadata": new_metadata}


def grace_of(resource: Resource, old: Object, options: Object) -> int:
    """Return the seconds until a deleted object is removed: a scheduled pod's grace period, otherwise 0."""
    if resource.kind != "Pod" or not old["spec"].get("nodeName"):
        return 0
    if old["status"].get("phase") in ("Succeeded", "Failed"):
        return 0
    requested = options.get("gracePeriodSeconds")
    grace: int = old["spec"]["terminationGracePeriodSeconds"] if requested is None else requested
    return max(grace, 0)


def is_released(obj: Object) -> bool:
    """True if a deleted object has neither finalizers nor a grace period left."""
    metadata = obj["metadata"]
    if not metadata.get("deletionTimestamp"):
        return False
    if metadata.get("finalizers") or (obj.get("kind") == "Namespace" and obj["spec"].get("finalizers")):
        return False
    return not metadata.get("deletionGracePeriodSeconds")


def check_namespace(resource: Resource, name: str, namespace: Object) -> None:
    """Raise `ApiError` if the namespace is terminating."""
    if namespace["metadata"].get("deletionTimestamp"):
        where = namespace["metadata"]["name"]
        why = f"unable to create new content in namespace {where} because it is being terminated"
        cause = {"reason": "NamespaceTerminating", "message": f"namespace {where} is being terminated"}
        raise forbidden(resource, name, why, causes=[cause | {"field": "metadata.namespace"}])
