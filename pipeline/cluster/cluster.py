"""What the engine needs of a cluster."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Tended:
    """What `Cluster.tend` found.

    Attributes
    ----------
    lost : int
        Number of workers that had to be replaced while they may have been at work.
    notes : tuple of str
        Messages for the user.
    """

    lost: int = 0
    notes: tuple[str, ...] = ()


class Cluster(Protocol):
    """Workers that execute calls of a Dask client."""

    @property
    def client(self) -> Any:
        """The `distributed.Client`."""
        ...

    def tend(self, left: int) -> Tended:
        """Replace workers that have ended; called all the time while `left` calls are not finished.

        Raises
        ------
        MachineError
            No worker can be had.
        """
        ...

    def cause_of_death(self, worker: str) -> str:
        """Return the name of the signal that killed a worker; empty if it is not known."""
        ...

    def abandon(self) -> None:
        """Do what has to be done quickly before this process is killed; any thread may call it."""
        ...

    def close(self) -> None:
        """End all workers and delete all temporary files."""
        ...
