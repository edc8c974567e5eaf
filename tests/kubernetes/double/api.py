"""Requests about objects, answered from the store. No I/O.

`Api` carries out what has been authorized: the verbs of Kubernetes with their options, and the subresources.
"""

import base64
import datetime
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tests.kubernetes.double import patches, rules
from tests.kubernetes.double.errors import (
    already_exists,
    bad_request,
    expired,
    forbidden,
    invalid,
    no_such_resource,
    not_found,
    too_large_version,
)
from tests.kubernetes.double.events import to_group
from tests.kubernetes.double.rbac import Request, Tokens, User, is_allowed, user_named
from tests.kubernetes.double.resources import Object, Resource, find
from tests.kubernetes.double.rules import Writer
from tests.kubernetes.double.selectors import Matches, field_selector, label_selector
from tests.kubernetes.double.store import Key, Store

_TOO_OLD_TO_CONTINUE = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)
_NAMESPACES = "namespaces"


def now() -> datetime.datetime:
    """The server's time."""
    return datetime.datetime.now(datetime.UTC)


def stamp(time: datetime.datetime) -> str:
    """As in metadata."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def shown(resource: Resource, thing: Object) -> Object:
    """A stored object as this resource shows it."""
    return to_group(thing) if resource.group == "events.k8s.io" else thing


def selection(resource: Resource, request: Request, query: Mapping[str, str]) -> Matches:
    """Which objects a list or watch means; they come as this resource shows them."""
    labels = label_selector(query.get("labelSelector", ""))
    fields = field_selector(resource, query.get("fieldSelector", ""))
    namespace = request.namespace

    def matches(thing: Object) -> bool:
        metadata = thing["metadata"]
        return (not namespace or metadata.get("namespace") == namespace) and labels(thing) and fields(thing)

    return matches


def flag(query: Mapping[str, str], name: str) -> bool:
    """A truth among the options of a request, as the server reads it."""
    return name in query and query[name].lower() not in ("false", "0")


def version_of(query: Mapping[str, str]) -> int:
    """`resourceVersion`; 0 when there is none."""
    text = query.get("resourceVersion") or "0"
    if not text.isdecimal():
        raise bad_request(f'Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax')
    return int(text)


@dataclass(slots=True)
class Api:
    """The cluster's objects, and what may be done to them."""

    store: Store
    tokens: Tokens
    plugins: Collection[str]

    # Reading.

    def get(self, resource: Resource, request: Request) -> Object:
        """One object, or a subresource of it."""
        thing = self._find(resource, request)
        if request.subresource == "scale":
            return rules.scale_of(resource, thing)
        return shown(resource, thing)

    def _find(self, resource: Resource, request: Request) -> Object:
        thing = self.store.get(resource.storage, (request.namespace, request.name))
        if thing is None:
            raise not_found(resource, request.name)
        return thing

    def list(self, resource: Resource, request: Request, query: Mapping[str, str]) -> Object:
        """A page of objects, or all of them."""
        limit, token = int(query.get("limit") or 0), query.get("continue")
        asked, version, start = version_of(query), self.store.version, ("", "")
        if asked > version:
            raise too_large_version(asked, version)
        if token:
            if asked:
                raise bad_request("specifying resource version is not allowed when using continue")
            version, start = self._continued(token)
        elif query.get("resourceVersionMatch") == "Exact" or (
            limit and asked and query.get("resourceVersionMatch") is None
        ):
            version = asked
            if not self.store.remembers(version):
                raise expired(f"The resourceVersion for the provided list is too old: {version}")
        elif query.get("resourceVersion") == "0":
            limit = 0  # answered from the watch cache, which has no pages
        matches = selection(resource, request, query)
        items: list[Object] = []
        metadata: Object = {"resourceVersion": str(version)}
        state = self.store.at(version, resource.storage)
        keys = sorted(key for key in state if key > start)
        for index, key in enumerate(keys):
            thing = shown(resource, state[key])
            if not matches(thing):
                continue
            if limit and len(items) == limit:
                metadata["continue"] = _token(version, keys[index - 1])
                if not (query.get("labelSelector") or query.get("fieldSelector") or request.namespace):
                    metadata["remainingItemCount"] = len(keys) - index
                break
            items.append({name: value for name, value in thing.items() if name not in ("apiVersion", "kind")})
        kind = f"{resource.kind}List"
        return {"kind": kind, "apiVersion": resource.api_version, "metadata": metadata, "items": items}

    def _continued(self, token: str) -> tuple[int, Key]:
        try:
            known = json.loads(base64.urlsafe_b64decode(token))
            version, start = int(known["rv"]), (known["start"][0], known["start"][1])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise bad_request("continue key is not valid: illegal base64 data") from error
        if not self.store.remembers(version):
            raise expired(_TOO_OLD_TO_CONTINUE, {"continue": _token(self.store.version, start)})
        return version, start

    # Writing.

    def create(self, resource: Resource, request: Request, body: Any, writer: Writer, user: User) -> Object:
        """A new object; or what a subresource makes of the body."""
        if resource.virtual:
            return self._review(resource, body, user)
        if request.subresource == "token":
            return self._issue(resource, request, body)
        if request.subresource:
            raise no_such_resource()
        if resource.namespaced and not request.namespace:
            raise bad_request("an empty namespace may not be set during creation")
        thing = rules.created(resource, body, request.namespace, writer, self.plugins)
        name = thing["metadata"]["name"]
        key = (request.namespace, name)
        if resource.namespaced:
            namespace = self.store.get(_NAMESPACES, ("", request.namespace))
            if namespace is None:
                raise not_found(_resource_of_namespaces(), request.namespace)
            rules.check_namespace(resource, name, namespace)
        if resource.kind == "Pod" and "ServiceAccount" in self.plugins:
            self._check_account(resource, thing)
        if self.store.get(resource.storage, key) is not None:
            raise already_exists(resource, name)
        return shown(resource, self.store.put(resource.storage, key, thing))

    def _check_account(self, resource: Resource, pod: Object) -> None:
        namespace, account = pod["metadata"]["namespace"], pod["spec"]["serviceAccountName"]
        if self.store.get("serviceaccounts", (namespace, account)) is None:
            why = f'error looking up service account {namespace}/{account}: serviceaccount "{account}" not found'
            raise forbidden(resource, pod["metadata"]["name"], why)

    def _review(self, resource: Resource, body: Any, user: User) -> Object:
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

    def _issue(self, resource: Resource, request: Request, body: Any) -> Object:
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
            "metadata": {"name": request.name, "namespace": request.namespace, "creationTimestamp": stamp(now())},
            "spec": {"audiences": ["https://kubernetes.default.svc"], "boundObjectRef": None} | spec,
            "status": {"token": token, "expirationTimestamp": stamp(end)},
        }

    def update(
        self, resource: Resource, request: Request, body: Any, writer: Writer, user: User
    ) -> tuple[Object, bool]:
        """Put an object in the place of the one there is; whether it is new."""
        old = self.store.get(resource.storage, (request.namespace, request.name))
        if old is None and resource.create_by_put and not request.subresource:
            return self.create(resource, request, body, writer, user), True
        if old is None:
            raise not_found(resource, request.name)
        if request.subresource == "scale":
            return self._scale(resource, old, body, writer), False
        fresh = rules.with_type(resource, rules.read(resource, body, writer))
        if resource.needs_version_to_update and not (fresh.get("metadata") or {}).get("resourceVersion"):
            message = 'Invalid value: "": must be specified for an update'
            raise invalid(resource, request.name, "metadata.resourceVersion", message)
        return self._write(resource, request, old, fresh, writer, is_patch=False), False

    def patch(self, resource: Resource, request: Request, kind: str, body: Any, writer: Writer) -> Object:
        """Change an object in place."""
        old = self._find(resource, request)
        if request.subresource == "scale":
            scale = patches.apply(kind, rules.scale_of(resource, old), body)
            return self._scale(resource, old, scale, writer)
        patched = rules.read(resource, patches.apply(kind, shown(resource, old), body), writer)
        return self._write(resource, request, old, rules.with_type(resource, patched), writer, is_patch=True)

    def _scale(self, resource: Resource, old: Object, scale: Any, writer: Writer) -> Object:
        fresh = rules.scaled(resource, old, scale, writer)
        if fresh is not old:
            fresh = self.store.put(resource.storage, _key(old), fresh)
        return rules.scale_of(resource, fresh)

    def _write(
        self, resource: Resource, request: Request, old: Object, fresh: Object, writer: Writer, *, is_patch: bool
    ) -> Object:
        if request.subresource == "finalize":
            rules.check_version(resource, old, fresh.get("metadata") or {})
            fresh = old | {"spec": fresh.get("spec") or {}}
        else:
            fresh = rules.updated(resource, request.subresource, old, fresh, writer, is_patch=is_patch)
        if fresh is old:
            return shown(resource, old)
        stored = self.store.put(resource.storage, _key(old), fresh)
        if rules.is_released(stored):
            stored = self.store.remove(resource.storage, _key(old))
        return shown(resource, stored)

    # Deleting.

    def delete(self, resource: Resource, request: Request, options: Object, writer: Writer) -> Object:
        """Delete one; what the client is told."""
        old = self._find(resource, request)
        left, gone = self._delete(resource, old, options, writer)
        if resource.returned_when_deleted or not gone:
            return left
        about: Object = {"name": request.name, "kind": resource.plural, "uid": old["metadata"]["uid"]}
        if resource.group:
            about["group"] = resource.group
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": about}

    def _delete(self, resource: Resource, old: Object, options: Object, writer: Writer) -> tuple[Object, bool]:
        grace = datetime.timedelta(seconds=rules.grace_of(resource, old, options))
        left = rules.terminating(resource, old, options, writer, stamp(now() + grace))
        if left is None and resource.kind == "Pod":  # which watches see ending before it is gone
            self.store.put(resource.storage, _key(old), rules.marked(resource, old, 0, stamp(now())))
        if left is None:
            return shown(resource, self.store.remove(resource.storage, _key(old))), True
        if left is not old:
            left = self.store.put(resource.storage, _key(old), left)
        return shown(resource, left), False

    def delete_collection(
        self, resource: Resource, request: Request, query: Mapping[str, str], options: Object, writer: Writer
    ) -> Object:
        """Delete all that are meant."""
        matches = selection(resource, request, query)
        found = [thing for thing in self.store.all(resource.storage).values() if matches(shown(resource, thing))]
        items = [self._delete(resource, thing, options, writer)[0] for thing in found]
        metadata = {"resourceVersion": str(self.store.version)}
        return {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.api_version,
            "metadata": metadata,
            "items": items,
        }


def _key(thing: Object) -> Key:
    metadata = thing["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _token(version: int, start: Key) -> str:
    return base64.urlsafe_b64encode(json.dumps({"rv": version, "start": start}).encode()).decode()


def _resource_of_namespaces() -> Resource:
    found = find("", "v1", _NAMESPACES)
    assert found is not None
    return found
