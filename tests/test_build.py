"""What an installation says of how it was built, and what is compiled."""

import ast
import tomllib
from fnmatch import fnmatch
from pathlib import Path

from router.build import hot_path
from router.gateway.exchange import Exchange

ROOT = Path(__file__).resolve().parents[1]


def compiled_modules() -> list[str]:
    """Those that setup.py names."""
    for statement in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "HOT_PATH":
            return list(ast.literal_eval(statement.value))
    raise AssertionError("setup.py has no HOT_PATH")


def test_it_is_told_whether_the_hot_path_is_compiled() -> None:
    is_function_of_python = hasattr(Exchange.begin, "__code__")
    assert hot_path() == ("interpreted" if is_function_of_python else "compiled")


def test_each_module_that_is_compiled_exists() -> None:
    assert [path for path in compiled_modules() if not (ROOT / path).is_file()] == []


def test_no_coroutine_is_compiled() -> None:
    waits = []
    for path in compiled_modules():
        tree = ast.parse((ROOT / path).read_text())
        waits += [path for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)]
    assert waits == []


def test_what_would_compile_to_nothing_is_an_error_in_each_module_that_is_compiled() -> None:
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    (checked,) = (each["module"] for each in mypy["overrides"] if each.get("warn_unreachable"))
    modules = [path.removesuffix(".py").replace("/", ".") for path in compiled_modules()]
    assert [module for module in modules if not any(fnmatch(module, pattern) for pattern in checked)] == []
