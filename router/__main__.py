"""The entry of the command `azureml-fe` and of `python -m router`.

It handles signals before it imports anything else.
"""

import sys

from router.cli.early_signals import exit_on_signals


def main() -> int:
    """Run the command in the arguments of the process. Return the exit code."""
    exit_on_signals()

    from router.cli.main import main as run_command
    from router.cli.output import run_with_output

    return run_with_output(run_command)


if __name__ == "__main__":
    sys.exit(main())
