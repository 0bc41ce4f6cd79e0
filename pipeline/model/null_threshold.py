"""Threshold of a model: set on its training controls, each scored by cross-validation.

Neither patients nor held-out controls are used, so that held-out controls can validate the threshold.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...data_manifests.cohort.subject import SubjectRecord, participant_of_key
from ...data_manifests.images.grid import Grid
from ...data_manifests.images.volume import Volume, read_grid
from ...data_manifests.open_file import is_readable
from ...evaluation.metrics.bootstrap import resample_subjects
from ...evaluation.metrics.components import find_lesions
from ...evaluation.metrics.lesion_metrics import cluster_curve
from ...evaluation.scoring.control_summary import P001_Z, ControlSummary
from ...evaluation.scoring.operating_point import OperatingPoint, StoredPoint
from ...models.anomaly.ensemble import latent_distance
from ...models.anomaly.fit import NULL
from ...models.features.feature_store import LatentStore
from ...models.features.source import is_of_latents
from ...preprocessing.patches.volume_store import VolumeStore
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..config.config import Config
from ..workflow.runner import Run
from ..workflow.stage_inputs import fit_identity


def null_threshold(run: Run) -> StoredPoint | None:
    """Set the threshold on the clusters in the null maps of all training controls, on the template grid.

    Returns
    -------
    StoredPoint or None
        None if the null maps were deleted.
    """
    folder = run.out.latents / NULL
    trained = {path.stem for path in folder.glob("*.npy")}
    if not trained:
        return None
    store = VolumeStore.open(run.out.patches)
    train = [key for key in store.keys if key in trained]
    null = LatentStore.open(folder, train, store.grid)

    def maps() -> Iterator[np.ndarray]:
        for key, row in zip(train, store.index(train), strict=True):
            inside = np.asarray(store.inside[row]) & store.grid.brain_mask
            yield np.where(inside, store.grid.inverse_transform(null.subject(key)[:, 0]), -np.inf).astype(np.float32)

    known = {subject.key: subject for subject in run.manifest}
    controls = [known[key] for key in train if key in known]
    distances = _latent_distances(folder, train, store.grid, run.config)
    point = threshold_on(maps, train, store.grid.grid, run.config, controls, distances)
    return StoredPoint.from_point(point, run.config.evaluation, fit_identity(run.out))


def _latent_distances(folder: Path, keys: Sequence[str], mask: VoxelMask, config: Config) -> list[float]:
    """Distance of the latents of each control from those of the others, by its cross-validated scores, if any."""
    name = next((name for name in config.models.ensemble.scorers if is_of_latents(name)), None)
    if name is None or not (folder / name).is_dir():
        return []
    scores = LatentStore.open(folder / name, keys, mask)
    each = (scores.subject(key)[:, 0] for key in keys)
    return [found for row in each if (found := latent_distance(row, np.isfinite(row))) is not None]


def threshold_on(
    maps: Callable[[], Iterable[np.ndarray]],
    keys: Sequence[str],
    grid: Grid,
    config: Config,
    controls: Sequence[SubjectRecord],
    latent_distances: Sequence[float] = (),
) -> OperatingPoint:
    """Set a threshold on maps of controls, and summarise what the controls have at it.

    Parameters
    ----------
    maps : callable
        Returns the z-maps (X, Y, Z) float32, -inf where there is no score. Called twice.
    keys : sequence of str
        Key of the control of each map.
    grid : Grid
    config : Config
    controls : sequence of SubjectRecord
        Those that are known; the ages, sexes, sites and voxel sizes of the summary are theirs.
    latent_distances : sequence of float
        See `latent_distance`; empty for a model without an encoder.
    """
    settings = config.evaluation
    smallest = int(np.ceil(settings.smallest_cluster_mm3 / grid.voxel_volume_mm3 - 1e-6))
    # No bootstrap sample needs more thresholds of one scan than this.
    most = int(np.ceil(settings.false_clusters * len(keys))) + 1
    no_lesion = np.zeros(grid.size_vox, np.int32)
    curves = (cluster_curve(z, no_lesion, smallest_voxels=smallest)[0] for z in maps())
    false_cluster_thresholds = [curve.false_cluster_thresholds[:most] for curve in curves]
    participants = [participant_of_key(key) for key in keys]
    weights = resample_subjects([""] * len(keys), settings.bootstrap_draws, config.seed, participants)
    point = OperatingPoint.set_on(false_cluster_thresholds, settings.false_clusters, weights, participants)
    largest, clusters, shares = [], [], []
    for z in maps():
        # Components are sorted, the largest first.
        found = find_lesions(Volume(z >= np.float32(point.threshold), grid)).lesions
        largest.append(found[0].volume_mm3 if found else 0.0)
        clusters.append(sum(cluster.voxels >= smallest for cluster in found))
        shares.append(float((z[np.isfinite(z)] > P001_Z).mean()))
    files = [path for path in (control.images["t1w"] for control in controls) if is_readable(path)]
    summary = ControlSummary.of(
        clusters,
        shares,
        [control.age for control in controls],
        [read_grid(path).spacing_mm for path in files],
        [control.sex for control in controls],
        [control.site for control in controls],
        latent_distances,
    )
    return replace(point, largest_mm3=tuple(largest), controls=summary)
