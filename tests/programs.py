"""Programs that tests run besides Python, git, a shell and coreutils.

A test declares them with `@pytest.mark.needs("curl")`, and is skipped if one is missing (`conftest`). `.ci/run`
installs the packages that `python3 tests/programs.py` prints.
"""

import shutil
from collections.abc import Iterable

DEBIAN_PACKAGES = {
    "chromium": "chromium",
    "curl": "curl",
    "h2load": "nghttp2-client",
    "node": "nodejs",
    "npm": "npm",
    "openssl": "openssl",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "strip": "binutils",
    "unshare": "util-linux",
    "wrk": "wrk",
}


def missing_packages(programs: Iterable[str]) -> list[str]:
    """Return the Debian packages of those programs that are not installed."""
    return sorted({DEBIAN_PACKAGES[program] for program in programs if shutil.which(program) is None})


if __name__ == "__main__":
    print(*missing_packages(DEBIAN_PACKAGES), sep="\n")
