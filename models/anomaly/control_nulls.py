"""Cross-validated scores of the training controls of a fitted model, on which another combination is calibrated."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data_manifests.cohort.subject import original_key, participant_of_key
from ...data_manifests.errors import UserError, private
from ...data_manifests.images.memory_map import rows_of
from ...preprocessing.patches.mirrored import are_copies, with_copies
from ...preprocessing.patches.volume_store import VolumeStore
from ..features.feature_store import LatentStore, ReadFeatures
from ..features.source import FeatureSource
from ..features.subsets import Subsets
from ..labels.fusion import Fusion
from ..settings import FOLDS, ModelSettings
from .calibration import folds_of, z_from_neg_log10_p
from .cross_fit import CrossFit
from .ensemble import Ensemble, Learnt
from .stored_controls import NULL, StoredControls, brains_of


@dataclass(frozen=True, eq=False)
class ControlNulls:
    """Scores of the training controls, each by scorers that were fitted without it, as the stage fit left them on disk.

    Attributes
    ----------
    stored : StoredControls
        In the order of the fit.
    fit : CrossFit
        With the folds of the fit.
    nulls : tuple of callable
        Open the -log10 p (n, P, 1) of each scorer.
    latents : callable or None
        Opens the latents (n, P, L) of the first encoder; None without an encoder.
    """

    stored: StoredControls
    fit: CrossFit
    nulls: tuple[ReadFeatures, ...]
    latents: ReadFeatures | None

    @classmethod
    def open(
        cls,
        patches: Path,
        latents: Path,
        ensemble: Ensemble,
        source: FeatureSource,
        settings: ModelSettings,
        *,
        seed: int,
        scratch: Path | None = None,
        jobs: int | None = None,
    ) -> "ControlNulls":
        """Open the scores of a fitted model.

        Parameters
        ----------
        patches, latents : Path
            Folders of the run that fitted it.
        ensemble : Ensemble
        source : FeatureSource
        settings : ModelSettings
        seed : int
            Of the fit.
        scratch : Path, optional
            See `CrossFit`.
        jobs : int, optional

        Raises
        ------
        UserError
            They were deleted.
        """
        names = [scorer.name for scorer in ensemble.scorers]
        scored = keys_with_nulls(patches, latents, names[0])
        store = VolumeStore.open(patches)
        keys = tuple(key for key in with_copies(store.keys) if key in scored)
        specs = source.specs(settings.ensemble.scorers)
        inside = brains_of(store, keys, {name: specs[name] for name in names}, source)
        stored = StoredControls(store, keys, inside, source, settings, latents)
        folds = folds_of([participant_of_key(key) for key in keys], FOLDS, seed)
        subsets = Subsets(folds, [np.zeros((len(keys), 0))] * (len(folds) + 1), copies=are_copies(keys))
        fit = CrossFit(ensemble.mask, inside, subsets, settings, jobs, device=source.device, scratch=scratch)
        encoded = ensemble.scorer_of_latents
        own = stored.reader(specs[encoded.name].feature_key) if encoded is not None else None
        return cls(stored, fit, tuple(stored.reader(f"{NULL}/{name}") for name in names), own)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the controls and of their mirrored copies."""
        return self.stored.keys

    @property
    def originals(self) -> np.ndarray:
        """Place of each control, or of the one that it is a copy of, among the controls without copies, (S,)."""
        places = {key: place for place, key in enumerate(dict.fromkeys(map(original_key, self.keys)))}
        return np.array([places[original_key(key)] for key in self.keys])

    def calibrated(self, ensemble: Ensemble, fusion: Fusion) -> tuple[Learnt, np.ndarray]:
        """Calibrate a combination as `fit_ensemble` does; also return -log10 p of the controls, (S, P)."""
        latents = self.latents if fusion.needs_latents else None
        calibration, null = self.fit.combine(ensemble.scorers, self.nulls, fusion=fusion, latents=latents)
        surroundings = None
        if ensemble.surroundings is not None:
            surroundings = self.fit.compare_with_surroundings(null)
        return Learnt(fusion, calibration, surroundings), null

    def write_null(self, folder: Path, null: np.ndarray) -> None:
        """Write the z-map of each control, (P, 1), to a folder, without mirrored copies; NaN outside its brain."""
        store = LatentStore.create(folder, self.fit.mask, 1)
        for key, z, brain in self._z(null):
            if key == original_key(key):
                store.write(key, z[:, None], available=brain)

    def _z(self, null: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for key, row, brain in zip(self.keys, rows_of(null), self.fit.inside, strict=True):
            yield key, np.where(brain, z_from_neg_log10_p(row), 0), brain


def keys_with_nulls(patches: Path, latents: Path, scorer: str = "*") -> frozenset[str]:
    """Keys of the controls that have cross-validated scores of a scorer (by default, of any) in the folders of a run.

    Raises
    ------
    UserError
        There are none.
    """
    keys = frozenset(path.stem for path in latents.glob(f"{NULL}/{scorer}/*.npy"))
    if not keys or not patches.is_dir():
        raise UserError(
            f"{private(latents.parent, 'the model')}: its folder holds no cross-validated scores of the training "
            "controls, expected the output folder of the `voxout run` that fitted the model, with `latents` and "
            "`patches`; packed models and models adapted to another scanner have none. Give that folder."
        )
    return keys
