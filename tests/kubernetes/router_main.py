"""`azureml-fe serve` in a pod of the tests: the CPU quota is that of the pod's own control group, which is a folder.

A container's control group is there before its first process; so is this one's (`resizing` writes it).
"""

import os
import sys
import time
from pathlib import Path

from router import cpu
from router.cli import main


def enter(group: Path) -> None:
    """Have this process's control group there."""
    while not (group / "cpu.max").exists():
        time.sleep(0.02)
    own = group / "self"
    own.write_text("0::/\n")
    cpu.cpu_quota.__defaults__ = cpu.available_cpus.__defaults__ = (group, own)


if __name__ == "__main__":
    enter(Path(os.environ["TESTS_CONTROL_GROUPS"]) / os.environ["AZUREML_FE_POD_NAME"])
    sys.exit(main(sys.argv[1:]))
