"""Validating admission policies: which policies match a write, and what their CEL expressions (cel-python) say. No I/O.

Supported: resource rules, match conditions, variables, validations and bindings that deny. Selectors and parameters are
not supported. As in the real server, an expression that fails counts as a denial, and variables are evaluated when they
are used.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import celpy
from celpy.adapter import json_to_cel
from celpy.evaluation import CELEvalError

from tests.kube_standin.api_server.errors import ApiError, forbidden
from tests.kube_standin.api_server.resources import Object, Resource
from tests.kube_standin.api_server.store import Store

_GROUP = "admissionregistration.k8s.io"
_CODES = {"Forbidden": 403, "Invalid": 422, "Unauthorized": 401, "RequestEntityTooLarge": 413}
_environment = celpy.Environment()


@dataclass(frozen=True, slots=True)
class Write:
    """A write as admission sees it, in the form of the request's resource. `old` or `new` is None if there is none."""

    user: str
    operation: str  # CREATE, UPDATE or DELETE
    group: str
    version: str
    resource: str
    subresource: str
    namespace: str
    name: str
    new: Object | None
    old: Object | None

    def context(self) -> dict[str, Any]:
        """Return the variables of expressions."""
        request: Object = {
            "operation": self.operation,
            "resource": {"group": self.group, "version": self.version, "resource": self.resource},
            "namespace": self.namespace,
            "name": self.name,
            "userInfo": {"username": self.user},
        }
        if self.subresource:
            request["subResource"] = self.subresource
        return {
            "object": json_to_cel(self.new),
            "oldObject": json_to_cel(self.old),
            "request": json_to_cel(request),
        }


def admit(store: Store, resource: Resource, write: Write) -> None:
    """Raise `ApiError` if a policy with a binding denies a write."""
    for binding in store.all(f"validatingadmissionpolicybindings.{_GROUP}").values():
        name = binding["spec"]["policyName"]
        policy = store.get(f"validatingadmissionpolicies.{_GROUP}", ("", name))
        for validation in denials(policy, write) if policy else ():
            reason = validation.get("reason", "Invalid")
            about = f"ValidatingAdmissionPolicy '{name}' with binding '{binding['metadata']['name']}' denied request: "
            error = forbidden(resource, write.name, about + message_of(validation))
            raise ApiError(_CODES[reason], reason, str(error), error.status.get("details"))


def message_of(validation: Object) -> str:
    """Return the message of a validation that denies a write."""
    message: str = validation.get("message") or f"failed expression: {validation['expression'].strip()}"
    return message


def denials(policy: Object, write: Write) -> Iterator[Object]:
    """Yield the validations of a policy that deny a write."""
    spec = policy["spec"]
    if not any(_matches(rule, write) for rule in spec["matchConstraints"]["resourceRules"]):
        return
    context = write.context()
    if not all(evaluate(each["expression"], context) is True for each in spec.get("matchConditions") or ()):
        return
    context["variables"] = _Variables(spec.get("variables") or (), context)
    for validation in spec["validations"]:
        if evaluate(validation["expression"], context) is not True:
            yield validation


def evaluate(expression: str, context: Mapping[str, Any]) -> bool | str:
    """Return the value of a boolean expression, or the error."""
    try:
        return bool(_program(expression).evaluate(dict(context)))
    except CELEvalError as error:
        return str(error)


@functools.lru_cache(maxsize=256)
def _program(expression: str) -> celpy.Runner:
    return _environment.program(_environment.compile(expression))


class _Variables(celpy.celtypes.MapType):
    """The variables of a policy. Each is evaluated at its first use. An error is its value, as elsewhere in cel-python,
    so that `||` and `&&` may ignore it."""

    def __init__(self, declared: Sequence[Object], context: Mapping[str, Any]) -> None:
        super().__init__()
        self._expressions = {each["name"]: each["expression"] for each in declared}
        self._context = context

    def __getitem__(self, key: Any) -> Any:
        if key not in self:
            try:
                self[key] = _program(self._expressions[key]).evaluate(dict(self._context))
            except CELEvalError as error:
                self[key] = error  # type: ignore[assignment]
        return super().__getitem__(key)


def _matches(rule: Object, write: Write) -> bool:
    full_resource = f"{write.resource}/{write.subresource}" if write.subresource else write.resource
    wildcards = {"*/*", f"*/{write.subresource}" if write.subresource else "*", f"{write.resource}/*"}
    return (
        bool({"*", write.operation} & set(rule["operations"]))
        and bool({"*", write.group} & set(rule["apiGroups"]))
        and bool({"*", write.version} & set(rule["apiVersions"]))
        and bool({full_resource, *wildcards} & set(rule["resources"]))
    )
