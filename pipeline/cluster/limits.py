"""Checks of the machine's limits before worker processes are started."""

import resource
import socket

from ...data_manifests.errors import MachineError

_FILES, _FILES_A_JOB = 60, 8
"""Files and sockets that this process keeps open, with a margin."""
_ADDRESS_SPACE = 10**9


def require_loopback() -> None:
    """Refuse a machine without a loopback interface, through which processes communicate."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 5):
            pass
    except OSError as error:
        raise MachineError(
            f"127.0.0.1: cannot be reached ({error.strerror or error}), expected the loopback interface to be up, "
            "for communication with worker processes. Bring it up (`ip link set lo up`), or ask the administrator of "
            "this machine."
        ) from error


def require_open_files(jobs: int) -> None:
    """Raise the limit of open files to what `jobs` workers need; refuse a machine that does not allow it."""
    needed = _FILES + _FILES_A_JOB * jobs
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise MachineError(
            f"{hard} files may be open at once (ulimit -n), expected {needed} or more for {jobs} "
            f"job{'s' if jobs > 1 else ''}. Raise the limit, or use fewer --jobs."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def require_address_space() -> None:
    """Refuse a machine with too little address space for the libraries, some of which then hang."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < _ADDRESS_SPACE:
        raise MachineError(
            f"{limit / 1e9:.2g} GB of address space are allowed to a process (ulimit -v), expected "
            f"{_ADDRESS_SPACE / 1e9:.2g} GB or more for the libraries alone. Raise the limit."
        )
