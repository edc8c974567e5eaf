"""Runs azureml-inference-server-http: `PYTHON inference_server.py ARGUMENT...`, with the arguments of azmlinfsrv.

The interpreter of the entry script runs this file, and its packages determine what the file does. That interpreter may
lack the router's packages and be as old as Python 3.8. So this file must not import the router, nor use newer syntax.
"""

import os
import runpy
import sys

_GUNICORN_WITH_CONTROL_SOCKET = (25, 1)
"""The first release of gunicorn that creates a control socket."""


def disable_control_socket() -> None:
    """Keep gunicorn from creating a control socket: all gunicorn processes of one user would use the same socket."""
    import gunicorn

    if gunicorn.version_info >= _GUNICORN_WITH_CONTROL_SOCKET:
        given = os.environ.get("GUNICORN_CMD_ARGS", "")
        os.environ["GUNICORN_CMD_ARGS"] = (given + " --no-control-socket").lstrip()


def main() -> None:
    """Run the server in this process."""
    # Python puts the directory of this file first. The modules in it must not shadow installed ones.
    if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]
    disable_control_socket()
    runpy.run_module("azureml_inference_server_http", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
