"""The verbs of the API with their options, and the subresources, for authorized requests. No I/O."""

import base64
import datetime
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tests.kube_standin.api_server import admission_policies, patches, writes
from tests.kube_standin.api_server.errors import (
    already_exists,
    bad_request,
    expired,
    forbidden,
    invalid,
    no_such_resource,
    not_found,
    too_large_version,
)
from tests.kube_standin.api_server.events import to_group
from tests.kube_standin.api_server.rbac import Request, Tokens, User, is_allowed, user_named
from tests.kube_standin.api_server.resources import Object, Resource, find
from tests.kube_standin.api_server.selectors import Matches, field_selector, label_selector
from tests.kube_standin.api_server.store import Key, Store
from tests.kube_standin.api_server.writes import Writer

_TOO_OLD_TO_CONTINUE = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)
_NAMESPACES = "namespaces"


def now() -> datetime.datetime:
    """Return the server's time."""
    return datetime.datetime.now(datetime.UTC)


def format_time(time: datetime.datetime) -> str:
    """Return a time in the format of metadata (RFC 3339, seconds)."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def in_resource_form(resource: Resource, obj: Object) -> Object:
    """Return a stored object in this resource's form."""
    return to_group(obj) if resource.group == "events.k8s.io" else obj


def build_selector(resource: Resource, request: Request, query: Mapping[str, str]) -> Matches:
    """Return the selector of a list or watch, for objects in this resource's form."""
    labels = label_selector(query.get("labelSelector", ""))
    fields = field_selector(resource, query.get("fieldSelector", ""))
    namespace = request.namespace

    def matches(obj: Object) -> bool:
        metadata = obj["metadata"]
        return (not namespace or metadata.get("namespace") == namespace) and labels(obj) and fields(obj)

    return matches


def query_flag(query: Mapping[str, str], name: str) -> bool:
    """Return a boolean query parameter."""
    return name in query and query[name].lower() not in ("false", "0")


def version_of(query: Mapping[str, str]) -> int:
    """Return the query's `resourceVersion`, or 0."""
    text = query.get("resourceVersion") or "0"
    if not text.isdecimal():
        raise bad_request(f'Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax')
    return int(text)


@dataclass(slots=True)
class Api:
    """Executes authorized requests on the stored objects."""

    store: Store
    tokens: Tokens
    plugins: Collection[str]

    # Reading.

    def get(self, resource: Resource, request: Request) -> Object:
        """Return an object or a subresource of it."""
        obj = self._find(resource, request)
        if request.subresource == "scale":
            return writes.scale_of(resource, obj)
        return in_resource_form(resource, obj)

    def _find(self, resource: Resource, request: Request) -> Object:
        obj = self.store.get(resource.storage, (request.namespace, request.name))
        if obj is None:
            raise not_found(resource, request.name)
        return obj

    def list(self, resource: Resource, request: Request, query: Mapping[str, str]) -> Object:
        """Return all objects, or one page of them."""
        limit, token = int(query.get("limit") or 0), query.get("continue")
        requested, version, start = version_of(query), self.store.version, ("", "")
        if requested > version:
            raise too_large_version(requested, version)
        if token:
            if requested:
                raise bad_request("specifying resource version is not allowed when using continue")
            version, start = self._parse_continue_token(token)
        elif query.get("resourceVersionMatch") == "Exact" or (
            limit and requested and query.get("resourceVersionMatch") is None
        ):
            version = requested
            if not self.store.has_history_since(version):
                raise expired(f"The resourceVersion for the provided list is too old: {version}")
        elif query.get("resourceVersion") == "0":
            limit = 0  # served from the watch cache, which has no pages
        matches = build_selector(resource, request, query)
        items: list[Object] = []
        metadata: Object = {"resourceVersion": str(version)}
        state = self.store.objects_at(version, resource.storage)
        keys = sorted(key for key in state if key > start)
        for index, key in enumerate(keys):
            obj = in_resource_form(resource, state[key])
            if not matches(obj):
                continue
            if limit and len(items) == limit:
                metadata["continue"] = _token(version, keys[index - 1])
                if not (query.get("labelSelector") or query.get("fieldSelector") or request.namespace):
                    metadata["remainingItemCount"] = len(keys) - index
                break
            items.append({name: value for name, value in obj.items() if name not in ("apiVersion", "kind")})
        kind = f"{resource.kind}List"
        return {"kind": kind, "apiVersion": resource.api_version, "metadata": metadata, "items": items}

    def _parse_continue_token(self, token: str) -> tuple[int, Key]:
        try:
            known = json.loads(base64.urlsafe_b64decode(token))
            version, start = int(known["rv"]), (known["start"][0], known["start"][1])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise bad_request("continue key is not valid: illegal base64 data") from error
        if not self.store.has_history_since(version):
            raise expired(_TOO_OLD_TO_CONTINUE, {"continue": _token(self.store.version, start)})
        return version, start

    # Writing.

    def create(self, resource: Resource, request: Request, body: Any, writer: Writer, user: User) -> Object:
        """Create an object, a token or a review."""
        if resource.virtual:
            return self._review_access(resource, body, user)
        if request.subresource == "token":
            return self._issue_token(resource, request, body)
        if request.subresource:
            raise no_such_resource()
        if resource.namespaced and not request.namespace:
            raise bad_request("an empty namespace may not be set during creation")
        obj = writes.new_object(resource, body, request.namespace, writer, self.plugins)
        name = obj["metadata"]["name"]
        key = (request.namespace, name)
        if resource.namespaced:
            namespace = self.store.get(_NAMESPACES, ("", request.namespace))
            if namespace is None:
                raise not_found(_resource_of_namespaces(), request.namespace)
            writes.check_namespace(resource, name, namespace)
        if resource.kind == "Pod" and "ServiceAccount" in self.plugins:
            self._check_account(resource, obj)
        if self.store.get(resource.storage, key) is not None:
            raise already_exists(resource, name)
        self._admit("CREATE", resource, request, user, new=obj)
        return in_resource_form(resource, self.store.put(resource.storage, key, obj))

    def _admit(
        self,
        operation: str,
        resource: Resource,
        request: Request,
        user: User,
        *,
        new: Object | None = None,
        old: Object | None = None,
    ) -> None:
        """Raise `ApiError` if an admission policy denies a write."""
        obj = new or old or {}
        write = admission_policies.Write(
            user=user.name,
            operation=operation,
            group=request.group,
            version=request.version,
            resource=request.resource,
            subresource=request.subresource,
            namespace=request.namespace,
            name=request.name or obj["metadata"]["name"],
            new=new and in_resource_form(resource, new),
            old=old and in_resource_form(resource, old),
        )
        admission_policies.admit(self.store, resource, write)

    def _check_account(self, resource: Resource, pod: Object) -> None:
        namespace, account = pod["metadata"]["namespace"], pod["spec"]["serviceAccountName"]
        if self.store.get("serviceaccounts", (namespace, account)) is None:
            why = f'error looking up service account {namespace}/{account}: serviceaccount "{account}" not found'
            raise forbidden(resource, pod["metadata"]["name"], why)

    def _review_access(self, resource: Resource, body: Any, user: User) -> Object:
        spec = body.get("spec") or {}
        about = spec.get("resourceAttributes") or {}
        request = Request(
            verb=about.get("verb", ""),
            group=about.get("group", ""),
            resource=about.get("resource", ""),
            subresource=about.get("subresource", ""),
            namespace=about.get("namespace", ""),
            name=about.get("name", ""),
        )
        if resource.kind == "SubjectAccessReview":
            user = user_named(spec.get("user", ""), tuple(spec.get("groups") or ()))
        return {
            "kind": resource.kind,
            "apiVersion": resource.api_version,
            "metadata": {"creationTimestamp": None},
            "spec": spec,
            "status": {"allowed": is_allowed(self.store, user, request)},
        }

    def _issue_token(self, resource: Resource, request: Request, body: Any) -> Object:
        account = self._find(resource, request)
        spec = body.get("spec") or {}
        seconds = spec.get("expirationSeconds") or 3600
        if seconds < 600:
            as_token = Resource("authentication.k8s.io", "v1", "tokenrequests", "TokenRequest")
            message = f"Invalid value: {seconds}: may not specify a duration less than 10 minutes"
            raise invalid(as_token, "", "spec.expirationSeconds", message)
        token, expires = self.tokens.issue(account, seconds)
        end = datetime.datetime.fromtimestamp(expires, datetime.UTC)
        return {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": request.name, "namespace": request.namespace, "creationTimestamp": format_time(now())},
            "spec": {"audiences": ["https://kubernetes.default.svc"], "boundObjectRef": None} | spec,
            "status": {"token": token, "expirationTimestamp": format_time(end)},
        }

    def update(
        self, resource: Resource, request: Request, body: Any, writer: Writer, user: User
    ) -> tuple[Object, bool]:
        """Replace an object. Return it, and whether it was created."""
        old = self.store.get(resource.storage, (request.namespace, request.name))
        if old is None and resource.create_by_put and not request.subresource:
            return self.create(resource, request, body, writer, user), True
        if old is None:
            raise not_found(resource, request.name)
        if request.subresource == "scale":
            return self._scale(resource, request, old, body, writer, user), False
        fresh = writes.with_type(resource, writes.decode(resource, body, writer))
        if resource.needs_version_to_update and not (fresh.get("metadata") or {}).get("resourceVersion"):
            message = 'Invalid value: "": must be specified for an update'
            raise invalid(resource, request.name, "metadata.resourceVersion", message)
        return self._write(resource, request, old, fresh, writer, user, is_patch=False), False

    def patch(self, resource: Resource, request: Request, kind: str, body: Any, writer: Writer, user: User) -> Object:
        """Apply a patch to an object."""
        old = self._find(resource, request)
        if request.subresource == "scale":
            scale = patches.apply(kind, writes.scale_of(resource, old), body)
            return self._scale(resource, request, old, scale, writer, user)
        patched = writes.decode(resource, patches.apply(kind, in_resource_form(resource, old), body), writer)
        return self._write(resource, request, old, writes.with_type(resource, patched), writer, user, is_patch=True)

    def _scale(
        self, resource: Resource, request: Request, old: Object, scale: Any, writer: Writer, user: User
    ) -> Object:
        fresh = writes.scaled_object(resource, old, scale, writer)
        before, after = writes.scale_of(resource, old), writes.scale_of(resource, fresh)
        self._admit("UPDATE", resource, request, user, new=after, old=before)
        if fresh is not old:
            fresh = self.store.put(resource.storage, _key(old), fresh)
        return writes.scale_of(resource, fresh)

    def _write(
        self,
        resource: Resource,
        request: Request,
        old: Object,
        fresh: Object,
        writer: Writer,
        user: User,
        *,
        is_patch: bool,
    ) -> Object:
        if request.subresource == "finalize":
            writes.check_version(resource, old, fresh.get("metadata") or {})
            fresh = old | {"spec": fresh.get("spec") or {}}
        else:
            fresh = writes.updated_object(resource, request.subresource, old, fresh, writer, is_patch=is_patch)
        self._admit("UPDATE", resource, request, user, new=fresh, old=old)
        if fresh is old:
            return in_resource_form(resource, old)
        stored = self.store.put(resource.storage, _key(old), fresh)
        if writes.is_released(stored):
            stored = self.store.remove(resource.storage, _key(old))
        return in_resource_form(resource, stored)

    # Deleting.

    def delete(self, resource: Resource, request: Request, options: Object, writer: Writer, user: User) -> Object:
        """Delete an object. Return the response's body."""
        old = self._find(resource, request)
        self._admit("DELETE", resource, request, user, old=old)
        remaining, is_removed = self._delete(resource, old, options, writer)
        if resource.returned_when_deleted or not is_removed:
            return remaining
        about: Object = {"name": request.name, "kind": resource.plural, "uid": old["metadata"]["uid"]}
        if resource.group:
            about["group"] = resource.group
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": about}

    def _delete(self, resource: Resource, old: Object, options: Object, writer: Writer) -> tuple[Object, bool]:
        grace = datetime.timedelta(seconds=writes.grace_of(resource, old, options))
        remaining = writes.terminating_object(resource, old, options, writer, format_time(now() + grace))
        if remaining is None and resource.kind == "Pod":  # watches get a terminating pod before its removal
            self.store.put(resource.storage, _key(old), writes.with_deletion_time(resource, old, 0, format_time(now())))
        if remaining is None:
            return in_resource_form(resource, self.store.remove(resource.storage, _key(old))), True
        if remaining is not old:
            remaining = self.store.put(resource.storage, _key(old), remaining)
        return in_resource_form(resource, remaining), False

    def delete_collection(
        self,
        resource: Resource,
        request: Request,
        query: Mapping[str, str],
        options: Object,
        writer: Writer,
        user: User,
    ) -> Object:
        """Delete the objects that match the selectors."""
        matches = build_selector(resource, request, query)
        found = [obj for obj in self.store.all(resource.storage).values() if matches(in_resource_form(resource, obj))]
        for obj in found:
            self._admit("DELETE", resource, request, user, old=obj)
        items = [self._delete(resource, obj, options, writer)[0] for obj in found]
        metadata = {"resourceVersion": str(self.store.version)}
        return {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.api_version,
            "metadata": metadata,
            "items": items,
        }


def _key(obj: Object) -> Key:
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _token(version: int, start: Key) -> str:
    return base64.urlsafe_b64encode(json.dumps({"rv": version, "start": start}).encode()).decode()


def _resource_of_namespaces() -> Resource:
    found = find("", "v1", _NAMESPACES)
    assert found is not None
    return found
