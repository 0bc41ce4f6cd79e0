"""Training controls of a model on disk: their volumes, the features of each, and their null maps."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...data_manifests.cohort.subject import SubjectRecord, count_participants, original_key
from ...preprocessing.patches.volume_store import VolumeStore
from ..confounds.brain_components import BrainComponents, affordable, sampled
from ..confounds.confounds import WHOLE_BRAIN, Confounds
from ..confounds.covariates import Covariates
from ..features.extractors import Features, PatchFeatures
from ..features.feature_store import LatentStore, ReadFeatures
from ..features.packed_masks import PackedMasks
from ..features.source import FeatureSource, ScorerSpec
from ..features.truncated_fov import away_from_truncation
from ..settings import ModelSettings

NULL = "null"
"""Name of the folder of null maps in the scratch folder."""


@dataclass(frozen=True, eq=False)
class StoredControls:
    """Training controls, with their volumes, features and null maps on disk.

    Attributes
    ----------
    store : VolumeStore
    keys : tuple of str
    inside : PackedMasks, (S, P)
        Brain mask of each control, without voxels near a truncated field of view.
    source : FeatureSource
    settings : ModelSettings
    scratch : Path
        See `fit_ensemble`; the folders below are in it.
    """

    store: VolumeStore
    keys: tuple[str, ...]
    inside: PackedMasks
    source: FeatureSource
    settings: ModelSettings
    scratch: Path

    def channels(self) -> Iterator[np.ndarray]:
        """Yield the channels (C, X, Y, Z) float32 of each control."""
        for key in self.keys:
            yield self.store.volumes_of(key).astype(np.float32)
            self.store.release_pages()

    def reader(self, folder: str) -> ReadFeatures:
        """Return a function that opens the features in a folder."""
        stored = LatentStore.open(self.scratch / folder, self.keys, self.store.grid)
        return lambda controls: replace(stored, keys=tuple(self.keys[index] for index in controls))

    def write_null(self, folder: str, null: Iterable[np.ndarray]) -> None:
        """Write the null values (P,) of each control to a folder; the maps of mirrored copies are of no use later."""
        store = LatentStore.create(self.scratch / folder, self.store.grid, 1)
        for key, values in zip(self.keys, null, strict=True):
            if folder != NULL or key == original_key(key):
                store.write(key, values[:, None])

    def write_features(self, spec: ScorerSpec, few: np.ndarray, seed: int, step: Callable[[], None]) -> Features:
        """Compute and write the features of every control, inside its brain and at `few` (P,); return the extractor."""
        if spec.features == "patches":
            controls = zip(self.channels(), self.inside, strict=True)
            features: Features = PatchFeatures.learn(controls, self.store.grid, self.source.rows(spec), seed=seed)
        else:
            features = self.source.features(spec, self.store.grid)
        store = LatentStore.create(self.scratch / spec.feature_key, self.store.grid, features.size)
        for key, channels, brain in zip(self.keys, self.channels(), self.inside, strict=True):
            store.write(key, features.compute(channels), available=brain | few)
            step()
        return features

    def learn_confounds(
        self, subsets: Sequence[np.ndarray], participants: Sequence[SubjectRecord]
    ) -> tuple[Confounds, list[np.ndarray]]:
        """Learn the confounds on each subset of the controls.

        Returns the confounds learnt on the last subset, and for each subset the values (S, k) of all controls.
        """
        settings = self.settings.ensemble
        covariates = Covariates.learn(settings.covariates, participants)
        values = np.array([covariates.values(participant) for participant in participants]).reshape(len(self.keys), -1)
        n_participants = [count_participants(self.keys[index] for index in subset) for subset in subsets]
        size = affordable(settings.brain_components, min(n_participants))
        if size == 0:
            return Confounds(covariates), [values] * len(subsets)
        voxels = self.source.features(WHOLE_BRAIN, self.store.grid)
        brains = [
            sampled(voxels.compute(channels), brain)
            for channels, brain in zip(self.channels(), self.inside, strict=True)
        ]
        learnt = [BrainComponents.learn(voxels, np.stack([brains[i] for i in subset]), size) for subset in subsets]
        weights = [np.stack([components.weights(brain) for brain in brains]) for components in learnt]
        return Confounds(covariates, learnt[-1]), [np.concatenate([values, own], axis=1) for own in weights]


def brains_of(
    store: VolumeStore, keys: Sequence[str], specs: Mapping[str, ScorerSpec], source: FeatureSource
) -> PackedMasks:
    """Brain masks of the controls, (S, P), without voxels near a truncated field of view."""
    reach_vox = max(source.reach_vox(spec, store.grid) for spec in specs.values())
    brains = (store.grid.transform(np.asarray(store.inside_of(key))) for key in keys)
    scored = (away_from_truncation(brain, store.grid, reach_vox) for brain in brains)
    return PackedMasks.pack(scored, store.grid.size)
