"""The file that pip runs first, also with a Python that is too old."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_python_that_is_too_old_is_named_at_once() -> None:
    text = (ROOT / "setup.py").read_text()
    ast.parse(text, feature_version=(3, 8))
    program = f"import sys; sys.version_info = (3, 10, 13); sys.version = '3.10.13 (main)'; exec({text!r})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "azureml-fe needs Python 3.11 or later; this is 3.10.13\n"


def test_setup_file_and_metadata_require_the_same_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"
    assert "sys.version_info < (3, 11)" in (ROOT / "setup.py").read_text()
