"""Prepares the process of a replica and then executes its program: `python -I -S exec_wrapper.py PARENT LISTEN PROGRAM
ARGUMENT...`

PARENT is the pid of the router. LISTEN is the address of the listening socket that the program inherits, or empty. This
file imports only the standard library, as it runs without the router's packages.

It is a program of its own, because a function that runs between fork and exec (`preexec_fn`) is unsafe in a process
with threads. It takes about 20 ms.
"""

import ctypes
import os
import signal
import socket
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
FIRST_PASSED_FD = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
BACKLOG = 2048  # gunicorn's default


def die_with(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when the process `parent` ends for any reason. Linux only."""
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died before prctl took effect; no signal is sent then.
    if os.getppid() != parent:
        sys.exit("the router has exited")


def close_inherited() -> None:
    """Close all but the standard streams, so that a replica does not keep the router's listening sockets open."""
    for name in os.listdir("/dev/fd"):
        if int(name) > 2:
            try:
                os.close(int(name))
            except OSError:
                pass  # the descriptor that listed the directory


def pass_listener(host: str, port: int) -> None:
    """Open the replica's listening socket and pass it to the program as systemd does (sd_listen_fds(3))."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=BACKLOG) as listener:
        fd = listener.detach()
    if fd != FIRST_PASSED_FD:
        os.dup2(fd, FIRST_PASSED_FD)
        os.close(fd)
    os.set_inheritable(FIRST_PASSED_FD, True)
    os.environ["LISTEN_FDS"] = "1"
    os.environ["LISTEN_PID"] = str(os.getpid())


def main() -> None:
    """Prepare the process and execute the program. Exits with 127 if the program cannot be executed."""
    parent, listen, *program = sys.argv[1:]
    die_with(int(parent))
    close_inherited()
    # Python ignores these signals, and an ignored signal stays ignored across exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    if listen:
        host, _, port = listen.rpartition(":")
        try:
            pass_listener(host, int(port))
        except OSError as error:
            sys.exit(f"cannot listen on {listen}: {os.strerror(error.errno or 0)}")
    try:
        os.execvp(program[0], program)  # noqa: S606 (no shell on purpose)
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main()
