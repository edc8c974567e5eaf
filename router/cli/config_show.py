"""`azureml-fe config show`: prints the settings in effect of a running router, and where each value comes from."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from router.admin.effective_settings import format_value
from router.config.listener_settings import is_loopback
from router.config.schema import UnknownServiceError
from router.net.host_check import COMMAND_HEADER
from router.telemetry.log import rfc3339

_TIMEOUT_SECONDS = 5.0
_MAX_BYTES = 16 * 2**20


def read_config(url: str, service: str | None) -> dict[str, Any]:
    """Return the document of `/config` of the router with this admin port or status page. Raises OSError, and
    `UnknownServiceError` if it does not serve the service."""
    scheme, netloc, path, _, _ = urlsplit(url)
    path = path.rstrip("/").removesuffix("/status") + "/config"
    query = "" if service is None else urllib.parse.urlencode({"service": service})
    document_url = urlunsplit((scheme, netloc, path, query, ""))
    request = urllib.request.Request(document_url, headers={COMMAND_HEADER: "config"})  # noqa: S310 (checked by the parser)
    # `http_proxy` of the environment is for other machines.
    proxies: dict[str, str] | None = {} if is_loopback(urlsplit(url).hostname or "") else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    try:
        with opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
            document: dict[str, Any] = json.loads(response.read(_MAX_BYTES))
            return document
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 404 and service is not None:
                raise UnknownServiceError(service, json.loads(error.read()).get("services", ()), "services") from None
            raise OSError(f"{document_url}: {error.reason}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise OSError(f"{document_url}: {getattr(reason, 'strerror', None) or reason}") from error


def config_lines(document: Mapping[str, Any], *, all_settings: bool) -> Iterator[str]:
    """Yield the lines for a terminal. Unless `all_settings`, without the values that are defaults."""
    yield from _dynamic_lines(document["dynamic_config"])
    yield "router:"
    yield from _setting_lines(document["router"], all_settings=all_settings)
    if "service" in document:
        service = document["service"]
        yield f"service {service['name']}:"
        yield from _setting_lines(service["settings"], all_settings=all_settings)
        for version, settings in service["versions"].items():
            yield f"service {service['name']}, version {version}:"
            yield from _setting_lines(settings, all_settings=all_settings)


def _dynamic_lines(state: Mapping[str, Any] | None) -> Iterator[str]:
    if state is None:
        return
    in_effect = "none in effect"
    if state["applied_at"] is not None:
        in_effect = f"version {state['etag']} in effect since {rfc3339(state['applied_at'])}"
    yield f"dynamic configuration: {state['source']}, {in_effect}"
    if state["failure"]:
        yield f"  cannot be read since {rfc3339(state['failing_since'])}: {state['failure']}"
    if state["refused"]:
        yield "  the latest version is refused:"
        yield from (f"    {line}" for line in state["refused"].splitlines())


def _setting_lines(settings: list[dict[str, Any]], *, all_settings: bool) -> Iterator[str]:
    shown = [each for each in settings if all_settings or each["source"] != "default" or "at_next_start" in each]
    width = max((len(each["name"]) for each in shown), default=0)
    for each in shown:
        value = _text(each["value"])
        if "at_next_start" in each:
            value += f" (at the next start: {_text(each['at_next_start'])})"
        yield f"  {each['name']:{width}}  {value}  [{each['source']}]"


def _text(value: Any) -> str:
    return format_value(tuple(value) if isinstance(value, list) else value)
