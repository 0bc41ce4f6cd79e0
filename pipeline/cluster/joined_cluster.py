"""Workers of a Dask scheduler that is running already, such as one that a site keeps for its users."""

import time
from contextlib import ExitStack, suppress
from importlib import metadata
from typing import Any

from ...data_manifests.errors import MachineError, UserError, private
from .cluster import Tended
from .scheduler import quiet

_CONNECT_LIMIT_S = 20
_WAIT_S = 600.0
"""Longest time without any worker."""
_SCHEMES = ("tls", "tcp")


def _version() -> str:
    return metadata.version("voxout")


class JoinedCluster:
    """Client of a running scheduler; see `Cluster`.

    With an address ``tls://...``, the keys are those that Dask's own configuration names (``distributed.comm.tls``).

    Parameters
    ----------
    address : str
        As in ``tls://node7:8786``.

    Raises
    ------
    UserError
        The address is wrong, the scheduler is not reachable, or a worker has another version of voxout.
    """

    def __init__(self, address: str):
        scheme, _, place = address.partition("://")
        if scheme not in _SCHEMES or not place.rpartition(":")[2].isdigit():
            raise UserError(
                f"--scheduler {private(address)}: found no address of a Dask scheduler, expected one such as "
                "tls://node7:8786."
            )
        self._closing = ExitStack()
        self._alone_since: float | None = None
        try:
            self.client = self._connected(address)
            self._require_same_version(address)
        except BaseException:
            self.close()
            raise

    def _connected(self, address: str) -> Any:
        from distributed import Client

        self._closing.enter_context(quiet())
        try:
            return Client(address, set_as_default=False, timeout=_CONNECT_LIMIT_S)
        except (OSError, TimeoutError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"--scheduler {private(address)}: not reachable ({reason}), expected a running Dask scheduler. Check "
                "the address, and for tls:// the keys in Dask's configuration (distributed.comm.tls)."
            ) from error

    def _require_same_version(self, address: str) -> None:
        try:
            found = set(self.client.run(_version).values())
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            raise UserError(
                f"--scheduler {private(address)}: its workers cannot load voxout ({type(error).__name__}), expected "
                f"the same installation as here ({_version()}). Start them with this Python."
            ) from error
        if found - {_version()}:
            raise UserError(
                f"--scheduler {private(address)}: its workers have voxout {', '.join(sorted(found))}, expected "
                f"{_version()}. Start them with this Python."
            )

    def tend(self, left: int) -> Tended:
        """Stop a run that has had no worker for ten minutes; workers are started by whoever runs the scheduler."""
        now = time.monotonic()
        if self.client.scheduler_info().get("workers"):
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
            return Tended(notes=("the scheduler has no workers; waiting for some",))
        elif now - self._alone_since > _WAIT_S:
            raise MachineError(
                f"--scheduler: the scheduler had no worker for {_WAIT_S / 60:.0f} minutes, expected one or more. Start "
                "workers, then give the same command again."
            )
        return Tended()

    def cause_of_death(self, worker: str) -> str:
        """Return an empty text: only whoever started the worker knows."""
        return ""

    def abandon(self) -> None:
        """Do nothing: the scheduler forgets the calls of a client that has gone."""

    def close(self) -> None:
        """Disconnect; scheduler and workers stay."""
        client = getattr(self, "client", None)
        if client is not None:
            with suppress(Exception):
                client.close(timeout=2)
        self._closing.close()
