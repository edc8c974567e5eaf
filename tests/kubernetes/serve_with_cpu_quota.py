"""`azureml-fe serve` in a pod of the tests, with a directory instead of the pod's control group for its CPU quota.

`tests/kube_standin/resizing_nodes.py` writes the quota. The directory exists before the pod's first process starts.
"""

import os
import sys
import time
from pathlib import Path

from router.cli.main import main
from router.workers import cpu


def use_control_group(group: Path) -> None:
    """Let the router read its CPU quota from `group`. Wait until the quota exists."""
    while not (group / "cpu.max").exists():
        time.sleep(0.02)
    own_groups = group / "self"
    own_groups.write_text("0::/\n")
    for function in (cpu.cpu_quota, cpu.cpu_periods, cpu.available_cpus):
        function.__defaults__ = (group, own_groups)


if __name__ == "__main__":
    use_control_group(Path(os.environ["TESTS_CONTROL_GROUPS"]) / os.environ["AZUREML_FE_POD_NAME"])
    sys.exit(main(sys.argv[1:]))
