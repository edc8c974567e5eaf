"""The `curl` command that `azureml-fe local` prints for each service."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from router.cluster.local.launch import LaunchSettings
from router.model.services import Service

SAMPLE_REQUEST = "sample-request.json"
"""Name of a file beside an entry script. It has the body of a request."""

PLACEHOLDER = "<JSON input of the model>"


class Trial(NamedTuple):
    """A request that shows whether a service works."""

    path: str
    """Relative to the URL of the service."""
    body: str | None = None
    """curl's argument of `-d`, not quoted; None for a GET."""


SCORE = Trial("score", PLACEHOLDER)
"""The request to an entry script without a sample. Many other servers have the same path."""


FindTrial = Callable[[Service], Trial]
"""Returns the trial of a service."""


def trial_of(launch: LaunchSettings | None) -> Trial:
    """Return the trial of a service with these launch settings. If they are unknown, it is that of an entry script.

    An entry script has the path `score`. Of other servers only the readiness path is known.
    """
    if launch is None:
        return SCORE
    if launch.entry_script is None:
        return Trial(launch.readiness_path.lstrip("/"))
    sample = launch.entry_script.with_name(SAMPLE_REQUEST)
    return SCORE._replace(body=f"@{sample}") if sample.is_file() else SCORE


class Secrets(NamedTuple):
    """Where the printed command gets a key or token from."""

    command: str
    """That of this program."""
    state_dir: Path
    file: str
    """That with the services."""
    shows_keys: bool
    """True if the output is a terminal. Other output may be stored, and stored output must not have keys."""
    has_stored_key: Callable[[str], bool]
    """Returns True if `azureml-fe keys show` prints the primary key of a service."""


def curl_command(service: Service, url: str, trial: Trial, secrets: Secrets) -> str:
    """Return the command for a request to `url`."""
    words = ["curl -sS", shlex.quote(url)]
    if service.uses_keys:
        words.append(f"-H {_authorization(service, secrets)}")
    if trial.body is not None:
        words.append(f"-H 'Content-Type: application/json' -d {shlex.quote(trial.body)}")
    return " ".join(words)


def _authorization(service: Service, secrets: Secrets) -> str:
    header = "Authorization: Bearer " if "authorization" in service.key_headers else f"{service.key_headers[0]}: "
    state = shlex.quote(str(secrets.state_dir.absolute()))
    if service.token_auth_enabled:
        return f'"{header}$({secrets.command} token {service.name} --bare --state-dir {state})"'
    if secrets.shows_keys:
        return shlex.quote(f"{header}{service.primary_key}")
    if not secrets.has_stored_key(service.name):
        return f'"{header}<primary_key in {secrets.file}>"'
    return f'"{header}$({secrets.command} keys show {service.name} --key primary --state-dir {state})"'
