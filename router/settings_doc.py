"""`docs/settings.md`, made from the tables of settings: `python -m router.settings_doc > docs/settings.md`.

Lives here: how the tables are printed. Must not live here: a fact about a setting.
"""

from collections.abc import Iterable

from router.auth.issuers import ISSUER_SETTINGS
from router.cluster.kubernetes.annotations import (
    DEPLOYMENT_SETTINGS,
    IN_THE_SECRET,
    IN_THE_TEMPLATE,
    annotation_name,
)
from router.cluster.local.file import LAUNCH_SETTINGS
from router.cluster_settings import POD_DEFAULTS
from router.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS
from router.settings import ROUTER_SETTINGS, environment_name, flag_name
from router.values import LARGEST_NUMBER, Setting

_INTRODUCTION = f"""\
# Settings

Made by `python -m router.settings_doc` from the tables that the router itself checks values against.

A number without an upper limit here is at most {LARGEST_NUMBER}. Written as text (annotations, environment variables,
flags) a number has digits and at most one point (`70`, `0.5`; not `+70`, `1_000`, `1e3`), a bool is `true` or `false`.
A value that breaks a rule is refused with its place, its limits and, for an unknown name, the nearest known one.
"Extension" marks what goes beyond Azure ML's SDK.
"""

_SERVICE_RULES = """\
`auth_enabled: true` and `token_auth_enabled: true` exclude each other.
"""

_VERSION_RULES = """\
In a service with `versions`, what stands beside them is a default for each version. A version that sets `num_replicas`
inherits no `autoscale_*`, one that sets `autoscale_*` inherits no `num_replicas`; `traffic_percentile` and `is_default`
are set within a version only.

- `autoscale_enabled: true` with `num_replicas`, `autoscale_enabled: false` without it, and any other `autoscale_*`
  while autoscaling is off are errors.
- `autoscale_min_replicas` must not exceed `autoscale_max_replicas`; a limit of CPU or memory must not be below its
  request.
- One version is the default: the one with `is_default: true`, else the first. It gets the traffic that the others
  leave, whatever its own `traffic_percentile`; the others may claim 100 percent together. A=20 (default) alone: A gets
  100. Add B=10: 90 and 10. Make B=40 and the default: A 20, B 80. The share of a version that has no ready replica, as
  it has just been added or fails, is meanwhile the others' by their shares, unless its `autoscale_min_replicas` is 0:
  its requests start it. A request that names its version gets no other.
- Names of services and versions: 1 to 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit.
"""

_LAUNCH_RULES = """\
Each version in a local file has exactly one of `entry_script`, `command` and `addresses`, its own or its service's.
With `addresses`, `num_replicas` and `autoscale_*` are errors. In the file every scalar is read as text, so that `0123`
and `no` stay what they are; a name given twice, a YAML tag, or a file above 1 MiB is an error.
"""

_ANNOTATION_RULES = f"""\
In Kubernetes a version is a Deployment with the labels `isazuremlapp=true` and `azuremlappname=SERVICE`, which its pods
have, too. Each setting of a service and of a version is an annotation of the Deployment, in kebab case:
`{annotation_name("scoring_timeout_ms")}: "30000"`. Those of the table below are annotations only.

- Several Deployments of one service are its versions, each with its own `{annotation_name("version")}`. Settings of the
  service may stand on any of them; where they contradict each other the oldest Deployment's counts.
- A service is in one namespace: that of its oldest Deployment.
- What a Deployment's pod template says is no annotation: {", ".join(f"`{name}`" for name in IN_THE_TEMPLATE)}.
  Nor are the keys: {", ".join(f"`{name}`" for name in IN_THE_SECRET)}.
- A wrong annotation is a Warning Event `SettingsRefused` of the Deployment; the settings stay as they were.
"""

_ROUTER_RULES = f"""\
A flag overrides the environment, which overrides the `router:` section of the file. Variables that Kubernetes makes
for a Service called `azureml-fe` (`AZUREML_FE_SERVICE_HOST`, `AZUREML_FE_PORT=tcp://...`) are passed over; another
unknown `AZUREML_FE_` variable is an error.

Defaults are those of `local`; `serve` has others for
{", ".join(f"`{name}` (`{value}`)" for name, value in POD_DEFAULTS.items())}.
"""


_ISSUER_RULES = """\
The section `token_issuers:` of a file maps names to issuers whose tokens services with `token_auth_enabled: true`
accept, beside those of the router itself (`token_issuing`).

- `audience` must be given, and `issuer` or a `preset`. Without `jwks_url` the issuer's address is asked
  (`/.well-known/openid-configuration`).
- Presets, with `TENANT` from `tenant`: `entra-v1` is issuer `https://sts.windows.net/TENANT/` with keys at
  `https://login.microsoftonline.com/TENANT/discovery/keys`; `entra-v2` is issuer
  `https://login.microsoftonline.com/TENANT/v2.0` with keys at
  `https://login.microsoftonline.com/TENANT/discovery/v2.0/keys`. Which of both a token is of, its `iss` says.
- `keys_max_age_seconds` must not be below `keys_refresh_seconds`.
"""


def render() -> str:
    """The whole text of `docs/settings.md`."""
    sections = (
        _INTRODUCTION,
        "## A service",
        _SERVICE_RULES,
        _table(SERVICE_SETTINGS),
        "## A version of a service",
        _VERSION_RULES,
        _table(VERSION_SETTINGS),
        "## How a version is launched (local file)",
        _LAUNCH_RULES,
        _table(LAUNCH_SETTINGS),
        "## In a Kubernetes cluster (annotations)",
        _ANNOTATION_RULES,
        _table(DEPLOYMENT_SETTINGS),
        "## The router",
        _ROUTER_RULES,
        _router_table(),
        "## Token issuers",
        _ISSUER_RULES,
        _table(ISSUER_SETTINGS),
    )
    return "\n\n".join(section.strip() for section in sections) + "\n"


def _table(settings: Iterable[Setting]) -> str:
    head = ("Setting", "Meaning", "Unit", "Default", "Allowed")
    rows = (
        (f"`{setting.name}`", _plain(setting.about), setting.unit, _default(setting), _plain(setting.range_text))
        for setting in settings
    )
    return _rows(head, rows)


def _router_table() -> str:
    head = ("In the file", "Environment", "Flag", "Meaning", "Unit", "Default", "Allowed")
    rows = (
        (
            f"`{setting.name}`",
            f"`{environment_name(setting.name)}`",
            f"`{flag_name(setting.name)}`" if setting.flag else "",
            _plain(setting.about),
            setting.unit,
            _default(setting),
            _plain(setting.range_text),
        )
        for setting in ROUTER_SETTINGS
    )
    return _rows(head, rows)


def _rows(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _default(setting: Setting) -> str:
    if setting.default_means:
        return setting.default_means
    match setting.default:
        case None | ():
            return "none"
        case bool():
            return str(setting.default).lower()
        case tuple():
            return ", ".join(f"`{each}`" for each in setting.default)
        case int() | float():
            return f"{setting.default:.15g}"
    return f"`{setting.default}`"


def _plain(text: str) -> str:
    return text.replace("*", r"\*").replace("|", r"\|")


if __name__ == "__main__":
    print(render(), end="")
