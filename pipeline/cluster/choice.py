"""Where the subjects of a run are worked on, checked before anything begins."""

from ...data_manifests.errors import UserError
from ..config.cluster_settings import ClusterSettings
from .cluster import Cluster

LOCAL = "local"


class ClusterChoice:
    """Place of the workers: this machine, the queueing system of a cluster, or a running scheduler.

    Parameters
    ----------
    name : str
        ``"local"``, or one of `SYSTEMS`.
    scheduler : str or None
        Address of a running Dask scheduler.
    settings : ClusterSettings

    Raises
    ------
    UserError
        Both are given, or the queueing system cannot be used (see `Queue`).
    """

    def __init__(self, name: str, scheduler: str | None, settings: ClusterSettings):
        self._scheduler, self._queue = scheduler, None
        if scheduler is not None and name != LOCAL:
            raise UserError(f"--cluster {name}: found --scheduler, too, expected one of them. Leave one out.")
        if name != LOCAL:
            from .queue_systems import Queue

            self._queue = Queue(name, settings)

    @property
    def is_remote(self) -> bool:
        """Whether the workers are not those of this machine."""
        return self._queue is not None or self._scheduler is not None

    @property
    def has_queue(self) -> bool:
        """Whether the workers are jobs of a queueing system."""
        return self._queue is not None

    def start(self) -> Cluster:
        """Start, or join, the cluster of a choice that `is_remote`."""
        if self._queue is not None:
            from .queue_cluster import QueueCluster

            return QueueCluster(self._queue)
        from .joined_cluster import JoinedCluster

        assert self._scheduler is not None
        return JoinedCluster(self._scheduler)
