"""How the replicas of a version are launched: the settings of the local file that Azure ML's SDK does not have.

Does not contain: which launch settings a version inherits (`config_file`), and starting a process (`replica_process`).
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from router.config.declaration import declared_settings, setting
from router.config.schema import SettingsError, parse_value


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSettings:
    """How to launch the replicas of one version: exactly one of `entry_script`, `command` and `addresses` is given.

    Processes run in `directory`, the directory of the configuration file. `environment` and `command` may contain
    secrets.
    """

    entry_script: Path | None = setting(
        "Path of an Azure ML entry script (init(), run(data)), which azureml-inference-server-http runs.",
        pattern_text="the path of a file",
    )
    command: tuple[str, ...] = setting(
        "Executable and arguments of any HTTP server. It runs in the directory of the configuration file. {port} and "
        "{host} are replaced; {port} is required, unless a value of environment contains it.",
        pattern=r"[^\x00]*",
        pattern_text="an executable and its arguments, with {port} in one of them or in a value of environment",
        secret=True,
    )
    python: str | None = setting(
        "Python interpreter that runs the entry script, with azureml-inference-server-http installed: a name in PATH, "
        "or a path.",
        default_text="the router's own",
        pattern=r"[^\x00]+",
        pattern_text="an executable",
    )
    addresses: tuple[tuple[str, int], ...] = setting(
        "Addresses of replicas that are started elsewhere. They are not scaled.",
        pattern=r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}",
        pattern_text="host:port, each once",
    )
    readiness_path: str = setting(
        "A replica is ready while a GET of this path returns a status from 200 to 399. For the path /, which a server "
        "need not have, statuses from 400 to 499 and 501 are also successes.",
        default="/",
        pattern=r"/[!-~]*",
        pattern_text="a path that begins with '/'",
    )
    liveness_path: str = setting(
        "A replica is replaced when a GET of this path fails repeatedly. The same statuses as for readiness_path are "
        "successes.",
        default="/",
        pattern=r"/[!-~]*",
        pattern_text="a path that begins with '/'",
    )
    environment: Mapping[str, str] = setting(
        "Environment variables of the replicas; those of a version are added to those of its service. {port} and "
        "{host} in values are replaced.",
        default={},
        default_text="none",
        pattern=r"[A-Za-z_][A-Za-z0-9_]*",
        pattern_text="names of letters, digits and '_'",
        secret=True,
    )
    directory: Path
    locations: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Where the settings are, by name, for errors."""

    def command_for(self, host: str, port: int) -> tuple[str, ...]:
        """Return `command` with its placeholders replaced; other braces, as in a JSON argument, are kept."""
        return tuple(_fill(word, host, port) for word in self.command)

    def environment_for(self, host: str, port: int) -> dict[str, str]:
        """Return `environment` with the placeholders in its values replaced."""
        return {name: _fill(value, host, port) for name, value in self.environment.items()}


def _fill(text: str, host: str, port: int) -> str:
    return text.replace("{port}", str(port)).replace("{host}", host)


LAUNCH_SETTINGS = declared_settings(LaunchSettings)
LAUNCH_SETTINGS_BY_NAME = {declared.name: declared for declared in LAUNCH_SETTINGS}

_PLACEHOLDER = re.compile(r"\{(\w+)\}")

LAUNCH_METHODS = ("entry_script", "command", "addresses")
"""Each version has exactly one of these settings."""


def parse_entry_script(raw: object, directory: Path, where: str) -> Path:
    """Return the path of an entry script relative to `directory`. Raises `SettingsError` if it is not a file."""
    script: Path = directory / parse_value(LAUNCH_SETTINGS_BY_NAME["entry_script"], raw, where)
    if not script.is_file():
        raise SettingsError("entry_script", raw, f"must be a file; there is none at {script}", where)
    return script


def parse_command(raw: object, where: str) -> tuple[str, ...]:
    """Return the words of a command. Raises `SettingsError` if it is not a list that begins with an executable."""
    declared = LAUNCH_SETTINGS_BY_NAME["command"]
    # A command must be a list: `parse_value` would split a single text at its commas.
    words: tuple[str, ...] = parse_value(declared, raw, where) if isinstance(raw, list) else ()
    if not words or not words[0]:
        raise SettingsError("command", None, declared.rule, where)
    return words


def check_has_port(command: Iterable[str], environment: Mapping[str, str], where: str) -> None:
    """Raise `SettingsError` if neither a word of `command` nor a value of `environment` contains `{port}`."""
    texts = (*command, *environment.values())
    if any("{port}" in text for text in texts):
        return
    placeholders = [name for text in texts for name in _PLACEHOLDER.findall(text)]
    misspelt = next((name for name in placeholders if difflib.get_close_matches(name.lower(), ["port"])), None)
    problem = "has no {port}"
    if misspelt is not None:
        problem += f"; did you mean {{port}} instead of {{{misspelt}}}?"
    else:
        problem += "; one of its words or a value of environment must contain it"
    raise SettingsError("command", None, problem, where)


def parse_addresses(raw: object, where: str) -> tuple[tuple[str, int], ...]:
    """Return hosts and ports. Raises `SettingsError` if there is no address, if one is repeated, or if a port is not
    from 1 to 65535."""
    declared = LAUNCH_SETTINGS_BY_NAME["addresses"]
    texts: tuple[str, ...] = parse_value(declared, raw, where)
    pairs = [text.rpartition(":") for text in texts]
    addresses = tuple((host.strip("[]"), int(port)) for host, _, port in pairs)
    if not addresses or len(set(addresses)) < len(addresses) or not all(0 < port < 65536 for _, port in addresses):
        raise SettingsError("addresses", raw, declared.rule, where)
    return addresses
