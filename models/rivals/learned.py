"""Network that learns to tell synthetic edits of the controls from unedited tissue: voxout's scorer `learned`, alone.

In the manner of Tan et al. ("Detecting outliers with foreign patch interpolation", MELBA 2022) and Kascenas et al.:
blobs of a control get foreign tissue, another intensity, blur, noise or a deformation, and a network is to find them,

    loss = cross-entropy of edited and unedited voxels,      score(x) = its logit.

Here: the inputs of the network are deviations of a voxel from the controls, smoothed at several scales
(docs/maps.md#the-learned-scorer), instead of raw patches. All settings are the defaults of voxout.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ...data_manifests.threads import one_torch_thread
from ..anomaly.fit import fit_ensemble
from ..features.source import FeatureSource
from ..settings import FEWEST_TO_LEARN_FROM, ModelSettings
from .scans import Controls, Scan, require_controls


class Learned:
    """voxout's scorer `learned`, without the others.

    Parameters
    ----------
    **changes
        To `LearnedSettings`.
    """

    fewest_controls = FEWEST_TO_LEARN_FROM
    is_costly = True

    def __init__(self, **changes: int):
        self.changes = changes

    def fit(self, controls: Controls) -> None:
        """Train its networks, one for each of its own folds."""
        require_controls("learned", len(controls), self.fewest_controls)
        self.controls = controls
        ensemble = {"scorers": ("learned",), "smoothing_mm": 0.0, "surroundings_mm": 0.0}
        settings = ModelSettings.model_validate({"ensemble": ensemble, "learned": self.changes})
        source = FeatureSource(controls.channels, (), controls.device)
        with TemporaryDirectory(dir=controls.folder) as scratch:
            self.ensemble = fit_ensemble(
                controls.store, controls.keys, source, settings, Path(scratch), seed=controls.seed, jobs=controls.jobs
            )

    def score(self, subject: Scan) -> np.ndarray:
        """Return the logits."""
        mask, (scorer,) = self.controls.mask, self.ensemble.scorers
        inside = mask.transform(subject.inside)
        features = scorer.features.compute(subject.channels)
        if scorer.regression is not None:
            confounds = self.ensemble.confounds.values(subject.channels, inside)
            features = scorer.regression.residualise(features, confounds)
        with one_torch_thread():
            return mask.inverse_transform(scorer.scorer.score(features, inside=inside, jobs=self.controls.jobs))
