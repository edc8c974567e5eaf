"""The server's errors: Status objects with the reasons, details and messages of the real server."""

from typing import Any

from tests.kube_standin.api_server.resources import Object, Resource


class ApiError(Exception):
    """An error response."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: Object | None = None,
        metadata: Object | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata or {},
            "status": "Failure",
            "message": message,
            "reason": reason,
        }
        if details:
            self.status["details"] = details
        self.status["code"] = code


def details(resource: Resource, name: str = "", **more: Any) -> Object:
    """Return the object that an error is about. `kind` is the plural, as in the real server."""
    found: Object = {"name": name} if name else {}
    if resource.group:
        found["group"] = resource.group
    return found | {"kind": resource.plural} | more


def not_found(resource: Resource, name: str) -> ApiError:
    """The object does not exist."""
    return ApiError(404, "NotFound", f'{resource.qualified} "{name}" not found', details(resource, name))


def no_such_resource() -> ApiError:
    """The group has no such resource."""
    return ApiError(404, "NotFound", "the server could not find the requested resource", {})


def already_exists(resource: Resource, name: str) -> ApiError:
    """An object of this name exists."""
    return ApiError(409, "AlreadyExists", f'{resource.qualified} "{name}" already exists', details(resource, name))


def conflict(resource: Resource, name: str, why: str = "") -> ApiError:
    """The object was changed in the meantime."""
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}'
    return ApiError(409, "Conflict", message, details(resource, name))


def bad_request(message: str) -> ApiError:
    """The request is malformed."""
    return ApiError(400, "BadRequest", message)


def invalid(resource: Resource, name: str, field: str, message: str, reason: str = "FieldValueInvalid") -> ApiError:
    """A field breaks a rule of the object's kind."""
    causes = [{"reason": reason, "message": message, "field": field}]
    about: Object = {"name": name} if name else {}
    if resource.group:
        about["group"] = resource.group
    return ApiError(
        422,
        "Invalid",
        f'{resource.qualified_kind} "{name}" is invalid: {field}: {message}',
        about | {"kind": resource.kind, "causes": causes},
    )


def forbidden(resource: Resource, name: str, why: str, **more: Any) -> ApiError:
    """An admission rule forbids the request for every user."""
    message = f'{resource.qualified} "{name}" is forbidden: {why}'
    return ApiError(403, "Forbidden", message, details(resource, name, **more))


def unauthorized() -> ApiError:
    """The credentials are unknown."""
    return ApiError(401, "Unauthorized", "Unauthorized")


def expired(message: str, metadata: Object | None = None) -> ApiError:
    """The requested version is older than the history."""
    return ApiError(410, "Expired", message, metadata=metadata)


def too_large_version(requested: int, current: int) -> ApiError:
    """The requested version does not exist yet."""
    return ApiError(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {requested}, current: {current}",
        {
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        },
    )


def unsupported_media_type(sent: str, supported: tuple[str, ...]) -> ApiError:
    """The body has an unsupported format."""
    message = f"the body of the request was in an unknown format - accepted media types include: {', '.join(supported)}"
    return ApiError(415, "UnsupportedMediaType", f"{message} (not {sent})" if sent else message)
