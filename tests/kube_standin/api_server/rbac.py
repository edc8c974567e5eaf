"""Authentication by tokens and client certificates, and authorization by stored roles and bindings. No I/O."""

import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.kube_standin.api_server.errors import ApiError, unauthorized
from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.api_server.store import Store

_GROUP = "rbac.authorization.k8s.io"
_OPEN_PATHS = ("/version", "/healthz", "/livez", "/readyz", "/api", "/apis")


@dataclass(frozen=True, slots=True)
class User:
    """An authenticated user."""

    name: str
    groups: tuple[str, ...]
    service_account: tuple[str, str] | None = None  # namespace and name

    @property
    def is_master(self) -> bool:
        """True for administrators."""
        return "system:masters" in self.groups


ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


@dataclass(frozen=True, slots=True)
class Request:
    """The attributes of a request that authorization uses."""

    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""  # of a request without a resource

    @property
    def full_resource(self) -> str:
        """The name in rules, such as deployments/scale."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


@dataclass(frozen=True, slots=True)
class _Token:
    user: User
    uid: str = ""
    expires: float = float("inf")  # seconds of time.time


@dataclass(slots=True)
class Tokens:
    """The valid tokens of service accounts."""

    _tokens: dict[str, _Token] = field(default_factory=dict)

    def issue(self, account: Object, seconds: float) -> tuple[str, float]:
        """Return a new token of a service account, and its expiry (time.time)."""
        namespace, name = account["metadata"]["namespace"], account["metadata"]["name"]
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
        user = User(f"system:serviceaccount:{namespace}:{name}", groups, (namespace, name))
        token = f"standin.{secrets.token_urlsafe(32)}"
        expires = time.time() + seconds
        self._tokens[token] = _Token(user, account["metadata"]["uid"], expires)
        return token, expires

    def user(self, header: str, store: Store) -> User:
        """Return the user of an `Authorization` header. Raises `ApiError`."""
        if not header:
            return ANONYMOUS
        scheme, _, token = header.partition(" ")
        known = self._tokens.get(token.strip()) if scheme.lower() == "bearer" else None
        if known is None or time.time() > known.expires:
            raise unauthorized()
        if known.user.service_account:
            account = store.get("serviceaccounts", known.user.service_account)
            if account is None or account["metadata"]["uid"] != known.uid:
                raise unauthorized()
        return known.user


def user_of(certificate: Mapping[str, Any]) -> User:
    """Return the user of a client certificate: its common name and organizations, as in Kubernetes."""
    subject = [pair for part in certificate["subject"] for pair in part]
    (name,) = [value for key, value in subject if key == "commonName"]
    groups = tuple(value for key, value in subject if key == "organizationName")
    return User(name, (*groups, "system:authenticated"))


def user_named(name: str, groups: tuple[str, ...]) -> User:
    """Return the user of a SubjectAccessReview."""
    prefix, *rest = name.rsplit(":", 2)
    is_account = prefix == "system:serviceaccount" and len(rest) == 2
    return User(name, groups, (rest[0], rest[1]) if is_account else None)


def authorize(store: Store, user: User, request: Request) -> None:
    """Raise `ApiError` unless a rule allows the request."""
    if is_allowed(store, user, request):
        return
    if request.path:
        message = f'forbidden: User "{user.name}" cannot {request.verb} path "{request.path}"'
        raise ApiError(403, "Forbidden", message, {})
    qualified = f"{request.resource}.{request.group}" if request.group else request.resource
    subject = f'{qualified} "{request.name}"' if request.name else qualified
    where = f'in the namespace "{request.namespace}"' if request.namespace else "at the cluster scope"
    message = (
        f'{subject} is forbidden: User "{user.name}" cannot {request.verb} resource "{request.full_resource}" '
        f'in API group "{request.group}" {where}'
    )
    about: Object = {"name": request.name} if request.name else {}
    if request.group:
        about["group"] = request.group
    raise ApiError(403, "Forbidden", message, about | {"kind": request.resource})


def is_allowed(store: Store, user: User, request: Request) -> bool:
    """True if a rule that is bound to the user allows the request."""
    if user.is_master:
        return True
    if request.path:
        return request.verb == "get" and request.path.startswith(_OPEN_PATHS)
    what = (request.group, request.resource, request.verb)
    if what == ("authorization.k8s.io", "selfsubjectaccessreviews", "create") and user is not ANONYMOUS:
        return True
    return any(_allows(rule, request) for rule in _rules(store, user, request.namespace))


def _rules(store: Store, user: User, namespace: str) -> Iterator[Object]:
    for binding in store.all(f"clusterrolebindings.{_GROUP}").values():
        if _binds(binding, user, ""):
            yield from _rules_of(store, binding["roleRef"], "")
    if namespace:
        for (where, _), binding in store.all(f"rolebindings.{_GROUP}").items():
            if where == namespace and _binds(binding, user, namespace):
                yield from _rules_of(store, binding["roleRef"], namespace)


def _rules_of(store: Store, reference: Object, namespace: str) -> list[Object]:
    if reference["kind"] == "ClusterRole":
        role = store.get(f"clusterroles.{_GROUP}", ("", reference["name"]))
    else:
        role = store.get(f"roles.{_GROUP}", (namespace, reference["name"]))
    return role.get("rules") or [] if role else []


def _binds(binding: Object, user: User, namespace: str) -> bool:
    for subject in binding.get("subjects") or []:
        kind, name = subject["kind"], subject["name"]
        if kind == "User" and name == user.name:
            return True
        if kind == "Group" and name in user.groups:
            return True
        if kind == "ServiceAccount" and user.service_account == (subject.get("namespace", namespace), name):
            return True
    return False


def _allows(rule: Object, request: Request) -> bool:
    names = rule.get("resourceNames") or []
    resources = rule.get("resources") or []
    verbs, groups = rule["verbs"], rule.get("apiGroups") or []
    return (
        ("*" in verbs or request.verb in verbs)
        and ("*" in groups or request.group in groups)
        and (
            "*" in resources
            or request.full_resource in resources
            or bool(request.subresource and f"*/{request.subresource}" in resources)
        )
        and (not names or request.name in names)
    )
