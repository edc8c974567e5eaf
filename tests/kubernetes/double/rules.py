"""What a create, an update, a patch and a delete do to an object, whatever its kind. No I/O; time comes in as text.

`old` and what is stored are never changed; `fresh` objects belong to the caller and may be.
"""

import copy
import secrets
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from tests.kubernetes.double import defaults, events, managed, schemas, statuses
from tests.kubernetes.double.errors import ApiError, bad_request, conflict, forbidden, invalid
from tests.kubernetes.double.resources import Object, Resource

_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"  # of generated names: no vowels, no look-alikes
_LONGEST_GENERATED = 63 - 5  # what is left of `generateName`
# Given by the server, so that no update changes them.
_KEPT = ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields")
_POD_CHANGES = ("activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations", "schedulingGates")
# Numbers that are shown even when they are zero.
_FIRST_STATUS: dict[str, Object] = {
    "ReplicaSet": {"replicas": 0},
    "HorizontalPodAutoscaler": {"desiredReplicas": 0, "currentMetrics": None},
    "PodDisruptionBudget": {"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0},
    "Service": {"loadBalancer": {}},
}


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes, when, and what becomes of fields that the server does not know."""

    manager: str
    now: str  # RFC 3339
    field_validation: str = "Warn"  # Strict: refuse them; Warn: drop them and say so; Ignore: drop them
    warnings: list[str] = field(default_factory=list)


def read(resource: Resource, thing: Any, writer: Writer) -> Any:
    """What a client has sent, as the server can read it."""
    unknown: list[str] = []
    fitted = schemas.fitted(resource, thing, unknown)
    said = [f'unknown field "{path}"' for path in unknown]
    if said and writer.field_validation == "Strict":
        raise bad_request(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
            f"strict decoding error: {', '.join(said)}"
        )
    if writer.field_validation == "Warn":
        writer.warnings.extend(said)
    return fitted


def created(
    resource: Resource, thing: Object, namespace: str, writer: Writer, plugins: Collection[str] = defaults.PLUGINS
) -> Object:
    """A new object, as it is to be stored; `plugins` are those of admission that are on."""
    thing = with_type(resource, read(resource, thing, writer))
    metadata = dict(thing.get("metadata") or {})
    if metadata.get("namespace") not in (None, "", namespace) and resource.namespaced:
        raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
    if resource.namespaced:
        metadata["namespace"] = namespace
    if metadata.get("resourceVersion"):
        raise bad_request("resourceVersion should not be set on objects to be created")
    if not metadata.get("name") and metadata.get("generateName"):
        suffix = "".join(secrets.choice(_SUFFIX) for _ in range(5))
        metadata["name"] = metadata["generateName"][:_LONGEST_GENERATED] + suffix
    if not metadata.get("name"):
        message = "Required value: name or generateName is required"
        raise invalid(resource, "", "metadata.name", message, "FieldValueRequired")
    for name in _KEPT:
        metadata.pop(name, None)
    metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": writer.now}
    if resource.counts_generations:
        metadata["generation"] = 1
    thing["metadata"] = metadata
    if resource.has_status and not resource.keeps_status_of_creation:
        thing["status"] = dict(_FIRST_STATUS.get(resource.kind, {}))
    defaults.check_metadata(resource, thing)
    _complete(resource, thing)
    if resource.kind == "Pod":
        defaults.admitted(thing, plugins)
    elif resource.kind == "Node" and "TaintNodesByCondition" in plugins:
        defaults.tainted(thing)
    return _with_managers(resource, {}, thing, writer, "")


def with_type(resource: Resource, thing: Object) -> Object:
    """A copy in the form of storage; an object may leave its type out, and must not have another."""
    if not isinstance(thing, dict):
        raise bad_request("the object provided is unrecognized (must be of type " + resource.kind + ")")
    if thing.get("apiVersion", resource.api_version) != resource.api_version:
        raise bad_request(
            f"the API version in the data ({thing['apiVersion']}) does not match the expected API version "
            f"({resource.api_version})"
        )
    if thing.get("kind", resource.kind) != resource.kind:
        raise bad_request(
            f'{thing["kind"]} in version "{resource.version}" cannot be handled as a {resource.kind}: no kind match'
        )
    typed = copy.deepcopy(thing) | {"apiVersion": resource.api_version, "kind": resource.kind}
    return events.to_core(typed) if resource.group == "events.k8s.io" else typed


def _complete(resource: Resource, thing: Object) -> None:
    if resource.plural == "events":
        events.complete(resource, thing)
    else:
        defaults.complete(resource, thing)


def updated(
    resource: Resource, subresource: str, old: Object, fresh: Object, writer: Writer, *, is_patch: bool
) -> Object:
    """What is to be stored for `old` when a client sends `fresh`; `old` itself if nothing changes."""
    name = old["metadata"]["name"]
    metadata = dict(fresh.get("metadata") or {})
    if metadata.get("name", name) != name:
        raise bad_request(f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})")
    uid = old["metadata"]["uid"]
    if is_patch and metadata.get("uid", uid) != uid:  # of a PUT it is a precondition, of a patch a field like others
        raise invalid(resource, name, "metadata.uid", f'Invalid value: "{metadata["uid"]}": field is immutable')
    check_version(resource, old, metadata)
    metadata |= {"name": name}
    for kept in ("namespace", "resourceVersion", *_KEPT):
        if kept in old["metadata"]:
            metadata[kept] = old["metadata"][kept]
        else:
            metadata.pop(kept, None)
    fresh["metadata"] = metadata
    fresh = _limited(resource, subresource, old, fresh)
    defaults.check_metadata(resource, fresh)
    _complete(resource, fresh)
    if subresource == "status":
        statuses.check(resource, fresh)
    _immutable(resource, subresource, old, fresh)
    if fresh == old:
        return old
    if resource.counts_generations and _counts_as_change(resource, old, fresh):
        fresh["metadata"]["generation"] = old["metadata"]["generation"] + 1
    return _with_managers(resource, old, fresh, writer, subresource)


def check_version(resource: Resource, old: Object, metadata: Object) -> None:
    """Raise when the client knows another version of the object, or another object of the same name."""
    name = old["metadata"]["name"]
    version = metadata.get("resourceVersion")
    if version and version != old["metadata"]["resourceVersion"]:
        raise conflict(resource, name)
    if metadata.get("uid") and metadata["uid"] != old["metadata"]["uid"]:
        why = (
            f"Precondition failed: UID in precondition: {metadata['uid']}, UID in object meta: {old['metadata']['uid']}"
        )
        raise conflict(resource, name, why)


def _limited(resource: Resource, subresource: str, old: Object, fresh: Object) -> Object:
    """Only what this address may change, the rest as it was."""
    if subresource == "status":
        metadata = fresh["metadata"] | {"labels": old["metadata"].get("labels")}
        if "ownerReferences" in old["metadata"]:
            metadata["ownerReferences"] = old["metadata"]["ownerReferences"]
        if not metadata["labels"]:
            del metadata["labels"]
        rest = {name: value for name, value in old.items() if name not in ("metadata", "status")}
        return copy.deepcopy(rest) | {"metadata": metadata, "status": fresh.get("status", {})}
    if subresource == "resize":
        return _resized(resource, old, fresh)
    if resource.has_status and "status" in old:
        fresh["status"] = old["status"]
    elif resource.has_status:
        fresh.pop("status", None)
    return fresh


def _resized(resource: Resource, old: Object, fresh: Object) -> Object:
    """Only what containers may have of CPU and memory; any other change is dropped."""
    wanted = copy.deepcopy(old)
    if len(fresh["spec"]["containers"]) != len(old["spec"]["containers"]):
        raise _pod_is_fixed(resource, old)
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
            amounts, former = container["resources"].get(what, {}), before.get(what, {})
            if former.keys() - amounts.keys():
                why = f"Forbidden: resource {what} cannot be removed"
                raise invalid(resource, name, f"{path}.{what}", why, "FieldValueForbidden")
            if any(amounts[key] != former.get(key) for key in amounts.keys() - {"cpu", "memory"}):
                why = "Forbidden: only cpu and memory resources are mutable"
                raise invalid(resource, name, "spec", why, "FieldValueForbidden")
    if defaults.class_of(wanted["spec"]) != old["status"]["qosClass"]:
        why = 'Invalid value: "": Pod QOS Class may not change as a result of resizing'
        raise invalid(resource, name, "spec", why)


def _pod_is_fixed(resource: Resource, pod: Object) -> ApiError:
    message = (
        "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
        "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing "
        "tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
    )
    return invalid(resource, pod["metadata"]["name"], "spec", message, "FieldValueForbidden")


def _immutable(resource: Resource, subresource: str, old: Object, fresh: Object) -> None:
    name = old["metadata"]["name"]
    if resource.kind in ("Deployment", "ReplicaSet") and fresh["spec"]["selector"] != old["spec"]["selector"]:
        message = "Invalid value: field is immutable"
        raise invalid(resource, name, "spec.selector", message)
    if resource.kind == "Pod" and subresource == "" and _fixed(fresh["spec"]) != _fixed(old["spec"]):
        raise _pod_is_fixed(resource, old)
    if resource.kind == "Secret" and fresh["type"] != old["type"]:
        raise invalid(resource, name, "type", "Invalid value: field is immutable")
    if resource.kind in ("RoleBinding", "ClusterRoleBinding") and fresh["roleRef"] != old["roleRef"]:
        raise invalid(resource, name, "roleRef", "Invalid value: cannot change roleRef")


def _fixed(spec: Object) -> Object:
    containers = [container | {"image": ""} for container in spec["containers"]]
    return {key: value for key, value in spec.items() if key not in _POD_CHANGES} | {"containers": containers}


def _counts_as_change(resource: Resource, old: Object, fresh: Object) -> bool:
    if fresh.get("spec") != old.get("spec"):
        return True
    return resource.kind == "Deployment" and fresh["metadata"].get("annotations") != old["metadata"].get("annotations")


def _with_managers(resource: Resource, old: Object, fresh: Object, writer: Writer, subresource: str) -> Object:
    entries = managed.written(
        old["metadata"].get("managedFields", []) if old else [],
        _of_address(resource, subresource, old),
        _of_address(resource, subresource, fresh),
        manager=writer.manager,
        api_version=resource.api_version,
        subresource=subresource,
        now=writer.now,
    )
    fresh["metadata"] = fresh["metadata"] | {"managedFields": entries}
    return fresh


def _of_address(resource: Resource, subresource: str, thing: Object) -> Object:
    """What is written through an address: all but the status, or the status alone."""
    if subresource or not resource.has_status or resource.keeps_status_of_creation:
        return thing
    return {name: value for name, value in thing.items() if name != "status"}


# The subresource `scale`.


def scale_of(resource: Resource, thing: Object) -> Object:
    """The Scale of a Deployment or ReplicaSet."""
    metadata = {
        name: thing["metadata"][name] for name in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    }
    replicas = thing["spec"]["replicas"]
    labels = thing["spec"]["selector"].get("matchLabels") or {}
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": replicas} if replicas else {},
        "status": {
            "replicas": thing.get("status", {}).get("replicas", 0),
            "selector": ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
        },
    }


def scaled(resource: Resource, old: Object, scale: Any, writer: Writer) -> Object:
    """The Deployment as a Scale that was sent makes it."""
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
    if replicas == old["spec"]["replicas"]:
        return old
    fresh = copy.deepcopy(old)
    fresh["spec"]["replicas"] = replicas
    fresh["metadata"]["generation"] += 1
    return _with_managers(resource, old, fresh, writer, "scale")


# Removal.


def terminating(resource: Resource, old: Object, options: Object, writer: Writer, later: str) -> Object | None:
    """What is left for now of an object that is deleted; None when it goes at once.

    `later` is the time when its grace ends.
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
        ending = metadata | {"deletionTimestamp": metadata.get("deletionTimestamp", writer.now)}
        return old | {"metadata": ending, "status": old["status"] | {"phase": "Terminating"}}
    if not grace and not finalizers:
        return None
    known = metadata.get("deletionGracePeriodSeconds")
    if known is not None and known <= grace and finalizers == (metadata.get("finalizers") or []):
        return old
    return marked(
        resource, old | {"metadata": metadata | ({"finalizers": finalizers} if finalizers else {})}, grace, later
    )


def marked(resource: Resource, old: Object, grace: int, later: str) -> Object:
    """An object that is being deleted. A pod is marked even when it goes at once."""
    metadata = old["metadata"]
    ending = metadata | {"deletionTimestamp": later, "deletionGracePeriodSeconds": grace}
    if resource.counts_generations and "deletionTimestamp" not in metadata:
        ending["generation"] = metadata["generation"] + 1
    return old | {"metadata": ending}


def grace_of(resource: Resource, old: Object, options: Object) -> int:
    """Seconds for which a deleted object stays: a pod's grace, if a node has it."""
    if resource.kind != "Pod" or not old["spec"].get("nodeName"):
        return 0
    if old["status"].get("phase") in ("Succeeded", "Failed"):
        return 0
    asked = options.get("gracePeriodSeconds")
    grace: int = old["spec"]["terminationGracePeriodSeconds"] if asked is None else asked
    return max(grace, 0)


def is_released(thing: Object) -> bool:
    """Whether a deleted object has nothing left that keeps it: no finalizer, no grace."""
    metadata = thing["metadata"]
    if not metadata.get("deletionTimestamp"):
        return False
    if metadata.get("finalizers") or (thing.get("kind") == "Namespace" and thing["spec"].get("finalizers")):
        return False
    return not metadata.get("deletionGracePeriodSeconds")


def check_namespace(resource: Resource, name: str, namespace: Object) -> None:
    """Nothing new in a namespace that ends."""
    if namespace["metadata"].get("deletionTimestamp"):
        where = namespace["metadata"]["name"]
        why = f"unable to create new content in namespace {where} because it is being terminated"
        cause = {"reason": "NamespaceTerminating", "message": f"namespace {where} is being terminated"}
        raise forbidden(resource, name, why, causes=[cause | {"field": "metadata.namespace"}])
