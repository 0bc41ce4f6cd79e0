"""Model fitted anew for one patient, on the training controls of its run weighted by age, sex and site."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import Manifest, SubjectRecord
from ...data_manifests.errors import UserError, some_of
from ...models.anomaly.control_nulls import ControlNulls, keys_with_nulls
from ...models.anomaly.matched import MatchedFit
from ...models.anomaly.matching import Match, Matching, match, require_ages
from ...preprocessing.patches.volume_store import VolumeStore
from ..config.config import load_config
from .anomaly_model import AnomalyModel

MATCHED = "the matched controls"
"""Name of the weights of the controls among the inputs of a map, and of what is told of them in its record."""


@dataclass(frozen=True)
class MatchedControls:
    """Training controls of a model, and how they are weighted.

    Attributes
    ----------
    controls : tuple of SubjectRecord
        In the order of the fit, without their scans.
    matching : Matching
    """

    controls: tuple[SubjectRecord, ...]
    matching: Matching

    @classmethod
    def read(cls, model: OutputFolder, cohort: Manifest, matching: Matching) -> "MatchedControls":
        """Find the training controls of a model in the cohort that it was fitted to.

        Raises
        ------
        UserError
            The model does not hold its controls, or some are not in the cohort or have no age.
        """
        scored = keys_with_nulls(model.patches, model.latents)
        by_key = {record.key: record for record in cohort}
        keys = [key for key in VolumeStore.open(model.patches).keys if key in scored]
        if missing := [key for key in keys if key not in by_key]:
            raise UserError(
                f"matched controls: {len(missing)} of {len(keys)} training controls of the model are not in the given "
                f"cohort ({some_of(missing)}), expected the one that it was fitted to. Give the cohort of that `voxout "
                "run`."
            )
        controls = tuple(replace(by_key[key], images={}, brain_mask=None, lesion_mask=None) for key in keys)
        require_ages(controls)
        return cls(controls, matching)

    def match(self, patient: SubjectRecord) -> Match:
        """Weigh the controls for a patient."""
        return match(self.controls, patient, self.matching)


def told_of(match: Match) -> dict[str, Any]:
    """Return what the JSON files of a patient's maps tell of its controls."""
    return {
        "Controls": len(match.weights),
        "EffectiveNumber": round(match.effective, 1),
        "AgeSdYears": None if match.years is None else round(match.years, 1),
        "Warnings": list(match.warnings),
    }


def matched_sentence(told: dict[str, Any]) -> str:
    """Return the sentence of a patient's page on what `told_of` has returned."""
    warnings = "".join(f" Warning: {warning}." for warning in told["Warnings"])
    return (
        f"Mapped with controls that are weighted by their likeness to this patient in age, sex and site; "
        f"{told['Controls']} controls count as {told['EffectiveNumber']:g} equal ones.{warnings}"
    )


_fits: list[tuple[tuple[object, ...], MatchedFit]] = []


def matched_model(
    loaded: AnomalyModel, folder: OutputFolder, controls: MatchedControls, match: Match, *, jobs: int
) -> AnomalyModel:
    """Fit a model for one patient; with equal weights, it is the loaded one.

    What does not depend on the patient is computed once in a process, as `model_of_process` loads the model once.
    """
    if match.is_equal:
        return loaded
    key = folder.root, loaded.identity, loaded.config, controls.controls, jobs
    if not _fits or _fits[0][0] != key:
        _fits[:] = [(key, _start(loaded, folder, controls, jobs))]
    return replace(loaded, ensemble=_fits[0][1].ensemble_for(match.weights))


def _start(loaded: AnomalyModel, folder: OutputFolder, controls: MatchedControls, jobs: int) -> MatchedFit:
    nulls = ControlNulls.open(
        folder.patches,
        folder.latents,
        loaded.ensemble,
        loaded.source,
        loaded.config.models,
        seed=load_config(folder.fitted_config).seed,  # That of the call may be another.
        scratch=Path(tempfile.gettempdir()),
        jobs=jobs,
    )
    return MatchedFit.start(loaded.ensemble, nulls, controls.controls)
