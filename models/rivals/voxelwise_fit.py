"""Fit of voxout's own voxel-wise scorers on features of the controls."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..anomaly.one_pass import OnePass, ScorerParts
from ..features.extractors import Features
from ..features.feature_store import LatentStore
from ..features.subsets import Subsets
from .scans import Controls, Scan

_FEWEST_AT_A_VOXEL = 2


def fit_voxelwise(controls: Controls, features: Features, parts: ScorerParts) -> Any:
    """Fit a scorer at each voxel; meanwhile, the features are in temporary files in the folder of the controls.

    Returns
    -------
    Scorer
    """
    mask = controls.mask
    brains = [mask.transform(controls.inside(key)) for key in controls.keys]
    few = np.sum(brains, axis=0) < _FEWEST_AT_A_VOXEL
    everyone = Subsets.everyone(np.empty((len(controls), 0)))
    with TemporaryDirectory(dir=controls.folder) as scratch:
        store = LatentStore.create(Path(scratch), mask, features.size)
        for scan, brain in zip(controls, brains, strict=True):
            store.write(scan.key, features.compute(scan.channels), available=brain | few)
        stored = LatentStore.open(store.folder, controls.keys, mask)
        one_pass = OnePass(mask, everyone, controls.jobs, store.folder)
        return one_pass.fit(lambda index: replace(stored, keys=tuple(controls.keys[i] for i in index)), parts)[0]


def voxelwise_scores(controls: Controls, features: Features, scorer: Any, subject: Scan) -> np.ndarray:
    """Score a subject with what `fit_voxelwise` returned, (X, Y, Z)."""
    mask = controls.mask
    scores = scorer.score(features.compute(subject.channels), inside=mask.transform(subject.inside), jobs=controls.jobs)
    return mask.inverse_transform(scores)
