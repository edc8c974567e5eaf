"""Build information, and the list of compiled modules."""

import ast
import tomllib
from fnmatch import fnmatch
from pathlib import Path

from router.gateway.exchange import Exchange
from router.telemetry.build_info import hot_path

ROOT = Path(__file__).resolve().parents[2]


def compiled_modules() -> list[str]:
    """Return the paths in `HOT_PATH` of setup.py."""
    for statement in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "HOT_PATH":
            return list(ast.literal_eval(statement.value))
    raise AssertionError("setup.py has no HOT_PATH")


def test_hot_path_reports_whether_it_is_compiled() -> None:
    is_interpreted = hasattr(Exchange.begin, "__code__")
    assert hot_path() == ("interpreted" if is_interpreted else "compiled")


def test_compiled_modules_exist() -> None:
    assert [path for path in compiled_modules() if not (ROOT / path).is_file()] == []


def test_compiled_modules_have_no_coroutines() -> None:
    coroutines = []
    for path in compiled_modules():
        tree = ast.parse((ROOT / path).read_text())
        coroutines += [path for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)]
    assert coroutines == []


def test_unreachable_code_is_an_error_in_compiled_modules() -> None:
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    (patterns,) = (each["module"] for each in mypy["overrides"] if each.get("warn_unreachable"))
    modules = [path.removesuffix(".py").replace("/", ".") for path in compiled_modules()]
    assert [module for module in modules if not any(fnmatch(module, pattern) for pattern in patterns)] == []
