"""Model for one patient: scorers and calibration fitted anew on the training controls, weighted by their likeness.

The scorers that consist of moments and one-class SVMs are fitted with the weights, in cross-validation as before, from
the features that the run has stored. Prototypes and the learned scorer, which take minutes to fit, stay as they are.
The combination of all scorers is calibrated with the weights. Confounds are those of the model; their effect on the
refitted features is estimated with the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...data_manifests.cohort.subject import SubjectRecord
from ..features.feature_store import ReadFeatures
from ..features.subsets import Subsets, effective_weights, training_sets
from .control_nulls import ControlNulls
from .ensemble import Ensemble

_KEPT = ("prototypes", "learned")
"""Scorers that are not fitted anew."""


@dataclass(frozen=True, eq=False)
class MatchedFit:
    """Fits of an ensemble for single patients.

    Attributes
    ----------
    ensemble : Ensemble
        Of the model.
    controls : ControlNulls
        Its training controls.
    confounds : sequence of ndarray, (S, k)
        See `Subsets`.
    """

    ensemble: Ensemble
    controls: ControlNulls
    confounds: Sequence[np.ndarray]

    @classmethod
    def start(
        cls, ensemble: Ensemble, controls: ControlNulls, participants: Sequence[SubjectRecord] = ()
    ) -> "MatchedFit":
        """Learn what does not depend on the patient: the confounds of the controls, as in the fit of the model.

        Parameters
        ----------
        ensemble : Ensemble
        controls : ControlNulls
        participants : sequence of SubjectRecord
            Records of the controls, without mirrored copies, in their order; required if the settings name covariates.
        """
        named = [participants[n] for n in controls.originals] if controls.fit.settings.ensemble.covariates else ()
        subsets = training_sets(controls.fit.subsets.folds, len(controls.keys))
        return cls(ensemble, controls, controls.stored.learn_confounds(subsets, named)[1])

    def ensemble_for(self, weights: Sequence[float] | np.ndarray) -> Ensemble:
        """Fit with a weight for each control; with equal weights, this is the ensemble of the model.

        A mirrored copy has the weight of its control.

        It has no calibration to the age of the patient (`Ensemble.ages`), whose place the weights take.
        """
        controls, folds = self.controls, self.controls.fit.subsets.folds
        relative = np.asarray(weights, np.float64) / np.max(weights)  # Equal ones become exactly 1.
        own = effective_weights(relative[controls.originals])
        subsets = Subsets(folds, self.confounds, own, controls.fit.subsets.copies)
        fit = replace(controls.fit, subsets=subsets)
        specs = controls.stored.source.specs(fit.settings.ensemble.scorers)
        scorers, nulls = [], []
        for scorer, null in zip(self.ensemble.scorers, controls.nulls, strict=True):
            spec = specs[scorer.name]
            if spec.scorer not in _KEPT:
                features = controls.stored.reader(spec.feature_key)
                scorer, values = fit.calibrated_scorer(scorer.name, spec, scorer.features, features)
                null = _as_stored(values)
            scorers.append(scorer)
            nulls.append(null)
        calibration, null = fit.combine(scorers, nulls)
        surroundings = None
        if self.ensemble.surroundings is not None:
            surroundings = fit.compare_with_surroundings(null)
        return replace(
            self.ensemble, scorers=tuple(scorers), calibration=calibration, surroundings=surroundings, ages=None
        )


def _as_stored(null: np.ndarray) -> ReadFeatures:
    """Return values (S, P) as a store of them would: (n, P, 1), as precise as on disk."""
    kept = null.astype(np.float16)
    return lambda controls: kept[np.asarray(controls), :, None]
