"""Who is asking, and whether roles and bindings in the store allow it. No I/O."""

import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.kubernetes.double.errors import ApiError, unauthorized
from tests.kubernetes.double.resources import Object
from tests.kubernetes.double.store import Store

_GROUP = "rbac.authorization.k8s.io"
_OPEN_PATHS = ("/version", "/healthz", "/livez", "/readyz", "/api", "/apis")


@dataclass(frozen=True, slots=True)
class User:
    """Somebody whose token the server knows."""

    name: str
    groups: tuple[str, ...]
    service_account: tuple[str, str] | None = None  # namespace and name

    @property
    def is_master(self) -> bool:
        """Whether everything is allowed."""
        return "system:masters" in self.groups


ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for, in the words of authorization."""

    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""  # of what is no resource

    @property
    def full_resource(self) -> str:
        """As rules name it: deployments/scale."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


@dataclass(frozen=True, slots=True)
class _Token:
    user: User
    uid: str = ""
    expires: float = float("inf")  # seconds of time.time


@dataclass(slots=True)
class Tokens:
    """The tokens that are in force."""

    _tokens: dict[str, _Token] = field(default_factory=dict)

    def issue(self, account: Object, seconds: float) -> tuple[str, float]:
        """A token of a service account, and when it ends."""
        namespace, name = account["metadata"]["namespace"], account["metadata"]["name"]
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
        user = User(f"system:serviceaccount:{namespace}:{name}", groups, (namespace, name))
        token = f"double.{secrets.token_urlsafe(32)}"
        expires = time.time() + seconds
        self._tokens[token] = _Token(user, account["metadata"]["uid"], expires)
        return token, expires

    def user(self, header: str, store: Store) -> User:
        """Whose the `Authorization` header is."""
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
    """Whose a client certificate is, as `ssl` tells it: a name and groups, as Kubernetes reads its subject."""
    subject = [pair for part in certificate["subject"] for pair in part]
    (name,) = [value for key, value in subject if key == "commonName"]
    groups = tuple(value for key, value in subject if key == "organizationName")
    return User(name, (*groups, "system:authenticated"))


def user_named(name: str, groups: tuple[str, ...]) -> User:
    """The user of a name, as reviews give it."""
    prefix, *rest = name.rsplit(":", 2)
    is_account = prefix == "system:serviceaccount" and len(rest) == 2
    return User(name, groups, (rest[0], rest[1]) if is_account else None)


def authorize(store: Store, user: User, request: Request) -> None:
    """Raise what the server answers when nothing allows it."""
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
    """Whether some rule that is bound to the user allows it."""
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
