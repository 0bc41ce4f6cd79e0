"""Threshold of a model: set on its training controls, each scored by cross-validation.

Neither patients nor held-out controls are used, so that held-out controls can validate the threshold.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ...data_manifests.cohort.subject import participant_of_key
from ...data_manifests.images.volume import Volume, read_grid
from ...data_manifests.open_file import is_readable
from ...evaluation.metrics.bootstrap import resample_subjects
from ...evaluation.metrics.components import find_lesions
from ...evaluation.metrics.lesion_metrics import cluster_curve
from ...evaluation.scoring.control_summary import P001_Z, ControlSummary
from ...evaluation.scoring.operating_point import OperatingPoint, StoredPoint
from ...models.anomaly.fit import NULL
from ...models.features.feature_store import LatentStore
from ...preprocessing.patches.volume_store import VolumeStore
from ..workflow.runner import Run
from ..workflow.stage_inputs import fit_identity


def null_threshold(run: Run) -> StoredPoint | None:
    """Set the threshold on the clusters in the null maps of all training controls, on the template grid.

    Returns
    -------
    StoredPoint or None
        None if the null maps were deleted.
    """
    settings, folder = run.config.evaluation, run.out.latents / NULL
    trained = {path.stem for path in folder.glob("*.npy")}
    if not trained:
        return None
    store = VolumeStore.open(run.out.patches)
    train = [key for key in store.keys if key in trained]
    null = LatentStore.open(folder, train, store.grid)
    smallest = int(np.ceil(settings.smallest_cluster_mm3 / store.grid.grid.voxel_volume_mm3 - 1e-6))
    # No bootstrap sample needs more thresholds of one scan than this.
    most = int(np.ceil(settings.false_clusters * len(train))) + 1

    def maps() -> Iterator[np.ndarray]:
        for key, row in zip(train, store.index(train), strict=True):
            inside = np.asarray(store.inside[row]) & store.grid.brain_mask
            yield np.where(inside, store.grid.inverse_transform(null.subject(key)[:, 0]), -np.inf).astype(np.float32)

    no_lesion = np.zeros(store.grid.grid.size_vox, np.int32)
    curves = (cluster_curve(z, no_lesion, smallest_voxels=smallest)[0] for z in maps())
    false_cluster_thresholds = [curve.false_cluster_thresholds[:most] for curve in curves]
    participants = [participant_of_key(key) for key in train]
    weights = resample_subjects([""] * len(train), settings.bootstrap_draws, run.config.seed, participants)
    point = OperatingPoint.set_on(false_cluster_thresholds, settings.false_clusters, weights, participants)
    largest, clusters, shares = [], [], []
    for z in maps():
        # Components are sorted, the largest first.
        found = find_lesions(Volume(z >= np.float32(point.threshold), store.grid.grid)).lesions
        largest.append(found[0].volume_mm3 if found else 0.0)
        clusters.append(sum(cluster.voxels >= smallest for cluster in found))
        shares.append(float((z[np.isfinite(z)] > P001_Z).mean()))
    controls = [run.manifest[key] for key in train if key in {subject.key for subject in run.manifest}]
    files = [path for path in (control.images["t1w"] for control in controls) if is_readable(path)]
    summary = ControlSummary.of(
        clusters, shares, [control.age for control in controls], [read_grid(path).spacing_mm for path in files]
    )
    point = replace(point, largest_mm3=tuple(largest), controls=summary)
    return StoredPoint.from_point(point, settings, fit_identity(run.out))
