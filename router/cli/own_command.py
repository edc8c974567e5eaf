"""The command that runs this program, as a user can paste it into a shell."""

import shlex
import shutil
import sys
from pathlib import Path

_NAME = "azureml-fe"


def own_command() -> str:
    """Return `azureml-fe` if that is this program in PATH, else its path, quoted for a shell."""
    program = Path(sys.argv[0])
    if program.name != _NAME:
        return f"{shlex.quote(sys.executable)} -m router"
    in_path = shutil.which(_NAME)
    if in_path is not None and program.exists() and Path(in_path).samefile(program):
        return _NAME
    return shlex.quote(str(program.absolute()))
