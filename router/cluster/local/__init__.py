"""The local cluster: replicas are processes of this machine, configured by one YAML file.

`cluster` implements `Cluster` for it. `config_file` reads the file.
"""

from pathlib import Path

_EXAMPLES = Path(__file__).parents[2] / "examples"


def example_path() -> Path:
    """Return the path of the example's configuration file."""
    return _EXAMPLES / "local.yaml"
