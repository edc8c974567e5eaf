"""The fixture of the management plane."""

from collections.abc import Iterator

import pytest

from tests.sdk.management_plane import ManagementPlane, running_management_plane


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagementPlane]:
    with running_management_plane(tmp_path_factory.mktemp("plane")) as plane:
        yield plane
