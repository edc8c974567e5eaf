"""What README.md and docs/architecture.md say exists: links, commands, settings, answers, rooms, names in the code."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.auth.issuers import ISSUER_SETTINGS
from router.cli import main
from router.cluster.local.file import LAUNCH_SETTINGS, load_local
from router.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS
from router.settings import ROUTER_SETTINGS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "docs/architecture.md",
    "docs/settings.md",
    "docs/security.md",
    "docs/metrics.md",
    "docs/operations.md",
    "benchmarks/README.md",
)
MODULES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "router").rglob("*.py"))}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for link in re.findall(r"(?<!!)\[[^\]]*\]\((?!https?:)([^)\s]+)\)", path.read_text()):
        file, _, section = link.partition("#")
        target = (path.parent / file) if file else path
        assert target.exists(), link
        if section:
            assert section in map(anchor, re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)), link


def test_readme_leads_to_the_pages_of_the_project() -> None:
    for page in PAGES[1:]:
        assert f"]({page})" in README


@pytest.mark.parametrize("extra", ["example", "test"])
def test_the_two_commands_stand_in_a_line_of_their_own_each(extra: str) -> None:
    (line,) = [line for line in README.splitlines() if f"pip install '.[{extra}]'" in line]
    assert line.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert f"{line}\n" in blocks("sh")


def test_extras_are_those_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"'\.\[([\w-]+)\]'", README)) == set(extras)


def test_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    commands = set(re.findall(r"azureml-fe (local|check|plan|top|token|keys \w+)", README))
    assert {"local", "check", "plan", "top", "token", "keys show", "keys regenerate"} <= commands
    for command in sorted(commands):
        with pytest.raises(SystemExit) as ended:
            main([*command.split(), "--help"])
        assert ended.value.code == 0
    for module in re.findall(r"python -m ([\w.]+)", README):
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    capsys.readouterr()


def test_local_files_are_what_they_seem(tmp_path: Path) -> None:
    found = []
    for text in blocks("yaml"):
        for script in re.findall(r"entry_script: ([\w.]+)", text):
            (tmp_path / script).touch()
        (tmp_path / "models.yaml").write_text(text)
        found.append(load_local(tmp_path / "models.yaml"))
    models, tokens = found
    assert set(models.services) == {"iris", "resnet", "remote", "ab"}
    assert set(tokens.token_issuers) == {"company", "partner"}


def test_settings_exist() -> None:
    known = {
        s.name for s in (*SERVICE_SETTINGS, *VERSION_SETTINGS, *LAUNCH_SETTINGS, *ROUTER_SETTINGS, *ISSUER_SETTINGS)
    }
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)(?::[^`]*)?`", README)) - {"azureml_fe_", "token_issuers"}
    assert named
    assert named <= known


def test_table_of_answers_has_every_slug() -> None:
    source = (ROOT / "router/http/answers.py").read_text()
    slugs = set(re.findall(r'Answer\(\s*\d+,\s*"([a-z-]+)"', source)) | set(
        re.findall(r'^[A-Z_]+ = "([a-z-]+)"', source, re.M)
    )
    table = set(re.findall(r"^\| \d{3} \| `([a-z-]+)` \|", README, re.MULTILINE))
    assert table == slugs - {"client-closed"}  # is never sent
    assert "499 `client-closed`" in README


def test_files_and_names_of_the_architecture_exist() -> None:
    for file in re.findall(r"`([\w./-]+\.(?:py|md))`", ARCHITECTURE):
        assert (ROOT / "router" / file).is_file() or (ROOT / file).is_file(), file
    members = {
        (node.name, getattr(member, "name", None))
        for tree in MODULES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for member in node.body
    }
    for owner, name in re.findall(r"`(_?[A-Z]\w+)\.(\w+)`", ARCHITECTURE):
        assert (owner, name) in members, f"{owner}.{name}"
    for test in re.findall(r"\b(test_\w+)`", ARCHITECTURE):
        assert any(f"def {test}(" in path.read_text() for path in (ROOT / "tests").rglob("test_*.py")), test


def room_of(module: str) -> str:
    """The row of the architecture's table that a module belongs to."""
    _, *parts = module.split(".")
    if parts[:1] == ["cluster"] and len(parts) > 1 and parts[1] in ("kubernetes", "local"):
        return ".".join(parts[:2])
    return parts[0] if parts else ""


def imported(path: Path) -> Iterator[str]:
    """Modules that a file imports, but for those that serve type checkers only."""
    tree = MODULES[path]
    only_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in only_types:
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and id(node) not in only_types:
            assert node.module is not None
            yield node.module


def test_rooms_import_only_what_the_architecture_allows() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| [^|]+ \|([^|]*)\|[^|]*\|$", ARCHITECTURE, re.MULTILINE)
    allowed = {room: set(re.findall(r"`([\w.]+)`", cell)) for room, cell in rows}
    order = [room for room, _ in rows]
    for path in MODULES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        room = room_of(module)
        if room in ("", "__main__"):
            continue
        assert room in allowed, f"docs/architecture.md does not know the room {room}"
        others = {room_of(name) for name in imported(path) if name.startswith("router.")} - {room}
        assert others <= allowed[room], f"{module} may not import {others - allowed[room]}"
    for room, others in allowed.items():
        assert all(order.index(other) < order.index(room) for other in others), room


def test_a_worker_loads_nothing_of_the_control_plane() -> None:
    heavy = ("aiohttp", "prometheus_client", "yaml", "kubernetes_asyncio", "router.supervisor", "router.scaling")
    code = f"import sys, router.gateway.worker; sys.exit([name for name in {heavy!r} if name in sys.modules] or None)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
