"""Links, commands, flags, values, settings, error codes and names of code in README.md and the pages of docs/ exist."""

import ast
import contextlib
import io
import json
import re
import tomllib
from pathlib import Path

import pytest

from router.auth.issuers import ISSUER_SETTINGS
from router.cli.main import main
from router.cluster.local.launch import LAUNCH_SETTINGS
from router.cluster.local.service_files import ServiceFiles
from router.config.router import ROUTER_SETTINGS
from router.config.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CLIENTS = (ROOT / "docs/clients.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
DESIGN = (ROOT / "docs/design.md").read_text()
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/clients.md",
    "docs/local.md",
    "docs/kubernetes.md",
    "docs/migrate.md",
    "docs/data-collection.md",
    "docs/architecture.md",
    "docs/design.md",
    "docs/settings.md",
    "docs/security.md",
    "docs/metrics.md",
    "docs/operations.md",
    "benchmarks/README.md",
    "benchmarks/autoscaler_simulation/README.md",
    "tests/kube_standin/README.md",
)
MODULES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "router").rglob("*.py"))}


USER_PAGES = tuple(page for page in PAGES if not page.startswith(("CHANGELOG", "benchmarks", "tests")))
NOT_RUN = {
    "README.md": {"sh", "yaml"},  # .ci/run runs the two install commands; the rest is in the other pages
    "CONTRIBUTING.md": {"sh"},  # .ci/run does the same
    "docs/clients.md": {"csharp", "js"},  # needs .NET; needs a service with WebSockets
    "docs/local.md": {"sh", "yaml"},  # needs Docker; test_example_files_are_valid reads the files
    "docs/data-collection.md": {"json", "python", "text", "yaml"},  # test_documented_event_and_settings reads them
    "docs/kubernetes.md": {"sh"},  # needs a registry and a cluster; tests/kubernetes does the same
    "docs/migrate.md": {"sh"},  # needs a workspace and a cluster
    "docs/operations.md": {"kusto", "sh", "yaml"},  # needs Azure; needs a cluster; test_documented_document_is_valid
}
"""Languages of the blocks of code that no test runs, with the reason. Blocks marked `run` are run by
`tests/cli/test_documented_examples.py` and `tests/sdk/test_sdks.py`."""


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def shell_text(page: str) -> str:
    """Return the shell commands of a page, one on each line: those in blocks, and those within sentences."""
    text = (ROOT / page).read_text()
    in_blocks = re.findall(r"^ *```sh(?: run)?\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    in_sentences = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", outside)]
    return "\n".join([re.sub(r"\\\n\s*", " ", block) for block in in_blocks] + in_sentences)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_have_a_target(page: str) -> None:
    path = ROOT / page
    for link in re.findall(r"(?<!!)\[[^\]]*\]\((?!https?:)([^)\s]+)\)", path.read_text()):
        file, _, section = link.partition("#")
        target = (path.parent / file) if file else path
        assert target.exists(), link
        if section:
            assert section in map(anchor, re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)), link


def test_readme_is_short_and_links_to_every_page() -> None:
    assert len(README.splitlines()) <= 150
    for page in PAGES[1:]:
        assert f"]({page})" in README


@pytest.mark.parametrize("page", USER_PAGES)
def test_each_block_of_code_is_run_or_listed(page: str) -> None:
    text = (ROOT / page).read_text()
    not_run = set(re.findall(r"^ *```([a-z]+)$", text, re.MULTILINE))
    assert not_run == NOT_RUN.get(page, set())


@pytest.mark.parametrize("extra", ["example", "test"])
def test_each_install_command_is_one_line(extra: str) -> None:
    (line,) = [line for line in README.splitlines() if f"pip install '.[{extra}]'" in line]
    assert line.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert f"{line}\n" in blocks("sh", README)


def test_extras_match_pyproject() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set()
    for page in USER_PAGES:
        named |= set(re.findall(r"'\.\[([\w-]+)\]'", (ROOT / page).read_text()))
    assert named == set(extras)


_HELP: dict[str, str | None] = {}


def help_of(command: str) -> str | None:
    """Return the text of `--help-all`, or else of `--help`; None if there is no such command."""
    if command not in _HELP:
        _HELP[command] = None
        for flag in ("--help-all", "--help"):
            out = io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
                try:
                    code: object = main([*command.split(), flag])
                except SystemExit as exit_request:
                    code = exit_request.code
            if code == 0:
                _HELP[command] = out.getvalue()
                break
    return _HELP[command]


@pytest.mark.parametrize("page", USER_PAGES)
def test_commands_and_their_flags_exist(page: str) -> None:
    for line in shell_text(page).splitlines():
        for call in re.findall(r"azureml-fe ((?:[a-z-]+(?: |$|\)))[^|;)>]*)", line):
            words = call.rstrip(")").split()
            command = words[0]
            if command in ("deploy/helm/azureml-fe", "-n") or "=" in command or command.startswith("-"):
                continue  # a release or a chart named azureml-fe
            if not helm_or_kubectl(line):
                text = help_of(" ".join(words[:2])) if len(words) > 1 and words[1].isalpha() else None
                text = text or help_of(command)
                assert text is not None, call
                for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
                    assert flag in text, call
    for module in re.findall(r"python -m ([\w.]+)", shell_text(page)):
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file() or module == "venv", module


def helm_or_kubectl(line: str) -> bool:
    return re.search(r"\b(helm|kubectl|docker|az)\b", line) is not None


@pytest.mark.parametrize("page", USER_PAGES)
def test_values_of_helm_commands_are_in_the_schema(page: str) -> None:
    schema = json.loads((ROOT / "deploy/helm/azureml-fe/values.schema.json").read_text())
    for line in shell_text(page).splitlines():
        if not line.lstrip().startswith(("helm ", "--set")):
            continue
        for argument in re.findall(r"--set(?:-string|-json)? '?([\w.]+=[^\s']*)", line):
            for path in re.findall(r"(?:^|,)([\w.]+)=", argument):
                node = schema
                for name in path.split("."):
                    node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
                    assert name in node.get("properties", {}), path
                    node = node["properties"][name]


def test_example_files_are_valid(tmp_path: Path) -> None:
    configs = []
    for text in (*blocks("yaml", README), *blocks("yaml", (ROOT / "docs/local.md").read_text())):
        for script in re.findall(r"entry_script: ([\w.]+)", text):
            (tmp_path / script).touch()
        (tmp_path / "models.yaml").write_text(text)
        configs.append(ServiceFiles([tmp_path / "models.yaml"]).load())
    first, models, tokens = configs
    assert set(first.services) == {"iris", "resnet"}
    assert set(models.services) == {"iris", "resnet", "remote", "ab"}
    assert set(tokens.token_issuers) == {"company", "partner"}


@pytest.mark.parametrize("page", ["README.md", "docs/clients.md", "docs/local.md", "docs/kubernetes.md"])
def test_settings_exist(page: str) -> None:
    known = {
        s.name for s in (*SERVICE_SETTINGS, *VERSION_SETTINGS, *LAUNCH_SETTINGS, *ROUTER_SETTINGS, *ISSUER_SETTINGS)
    }
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)(?::[^`]*)?`", (ROOT / page).read_text()))
    assert named <= known | {"azureml_fe_", "token_issuers"}


def test_table_of_error_codes_is_complete() -> None:
    source = (ROOT / "router/http/responses.py").read_text()
    error_codes = set(re.findall(r'LocalResponse\(\s*\d+,\s*"([a-z-]+)"', source)) | set(
        re.findall(r'^[A-Z_]+ = "([a-z-]+)"', source, re.M)
    )
    table = set(re.findall(r"^\| \d{3} \| `([a-z-]+)` \|", CLIENTS, re.MULTILINE))
    never_sent = {"client-closed", "stream-timeout", "tunnel-idle"}
    assert table == error_codes - never_sent
    for error_code in never_sent:
        assert f"`{error_code}`" in CLIENTS


@pytest.mark.parametrize("page", [ARCHITECTURE, DESIGN], ids=["architecture", "design"])
def test_names_in_architecture_and_design_exist(page: str) -> None:
    for file in re.findall(r"`([\w./-]+\.(?:py|md))`", page):
        assert (ROOT / "router" / file).is_file() or (ROOT / file).is_file(), file
    members = {
        (node.name, getattr(member, "name", None))
        for tree in MODULES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for member in node.body
    }
    for owner, name in re.findall(r"`(_?[A-Z]\w+)\.(\w+)`", page):
        assert (owner, name) in members, f"{owner}.{name}"
    for directory in re.findall(r"`(tests/[\w/]+/)`", page):
        assert (ROOT / directory).is_dir(), directory


def test_layers_in_architecture_are_those_of_the_import_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    (picture,) = re.findall(r"^```\n(  cli .*?)^```", ARCHITECTURE, re.MULTILINE | re.DOTALL)
    assert [re.split(r"  +", line.strip())[0] for line in picture.splitlines()] == layers[1:]  # without __main__


@pytest.mark.parametrize(
    ("file", "path_pattern"),
    [
        ("CONTRIBUTING.md", r"`((?:router|tests|deploy|benchmarks|docs)/[\w./-]+)`"),
        (".ci/run", r"(?<!/)\btests/(?![\w/]*\.venv)[\w./-]+"),  # environments are made there
    ],
)
def test_paths_exist(file: str, path_pattern: str) -> None:
    paths = re.findall(path_pattern, (ROOT / file).read_text())
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), path
