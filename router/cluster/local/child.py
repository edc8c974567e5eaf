"""The step between the router's fork and a replica's own program: `python -I -S child.py PARENT LISTEN PROGRAM
ARGUMENT...`

Lives here: what can be done only within the new process, before its program begins. Must not live here: any import
beyond the standard library, as this file runs by itself, nor any waiting: `exec` follows at once.

It is a program of its own and not a function between fork and exec (`preexec_fn`), since the latter is unsafe as soon
as the router has threads. It costs about 20 ms.
"""

import ctypes
import os
import signal
import socket
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
FIRST_PASSED_FD = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
BACKLOG = 2048  # what gunicorn itself asks for


def die_with(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when `parent` dies, even if it was killed. Linux only."""
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died before prctl took effect; then no signal will come.
    if os.getppid() != parent:
        sys.exit("the router is gone")


def close_inherited() -> None:
    """Close all but the standard streams: the router's listening sockets must not live on in a replica."""
    for name in os.listdir("/dev/fd"):
        if int(name) > 2:
            try:
                os.close(int(name))
            except OSError:
                pass  # the descriptor that listed the directory


def pass_listener(host: str, port: int) -> None:
    """Open the replica's socket and pass it on as systemd does (sd_listen_fds(3))."""
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
    """Set the process up as its arguments say and become the program; exits with 127 when there is none."""
    parent, listen, *program = sys.argv[1:]
    die_with(int(parent))
    close_inherited()
    # Python ignores these; what is ignored stays so in the program.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    if listen:
        host, _, port = listen.rpartition(":")
        try:
            pass_listener(host, int(port))
        except OSError as error:
            sys.exit(f"cannot listen on {listen}: {os.strerror(error.errno or 0)}")
    try:
        os.execvp(program[0], program)  # noqa: S606 (no shell is the point)
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main()
