"""Models fitted anew for one patient."""

from dataclasses import replace

import numpy as np
import pytest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.errors import UserError
from voxout.models.anomaly.control_nulls import ControlNulls
from voxout.models.anomaly.matched import MatchedFit
from voxout.models.features.subsets import effective_weights
from voxout.pipeline.model.anomaly_model import AnomalyModel
from voxout.pipeline.model.whole_model import require_whole_model

from ...pipeline.model.small_model import CONTROLS, GRID, SETTINGS, brains, fit_small_model

EVERYWHERE = np.ones(GRID.size, bool)


def matched_fit(model: OutputFolder, jobs: int = 1) -> MatchedFit:
    config = require_whole_model(model).config
    loaded = AnomalyModel.load(model, config, "cpu")
    controls = ControlNulls.open(
        model.patches, model.latents, loaded.ensemble, loaded.source, config.models, seed=0, jobs=jobs
    )
    return MatchedFit.start(loaded.ensemble, controls)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return OutputFolder(fit_small_model(tmp_path_factory.mktemp("given") / "model", keep_controls=True))


@pytest.fixture(scope="module")
def fit(model):
    return matched_fit(model)


def z_of(ensemble, seed=99):
    return ensemble.predict(brains(1, seed)[0].astype(np.float32), EVERYWHERE, jobs=1).z


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_equal_weights_are_the_model_itself_to_the_bit(model, jobs, weight):
    fit = matched_fit(model, jobs)
    matched = fit.ensemble_for(np.full(CONTROLS, weight))
    np.testing.assert_array_equal(z_of(matched), z_of(fit.ensemble))
    for own, other in zip(matched.scorers, fit.ensemble.scorers, strict=True):
        np.testing.assert_array_equal(own.calibration.scale, other.calibration.scale)
        assert (own is other) == (own.name == "prototypes"), "the other scorers are fitted anew"


def test_equal_weights_are_the_model_with_covariates_and_without_smoothing(tmp_path):
    ensemble = {"scorers": ["ocsvm"], "brain_components": 0, "smoothing_mm": 0.0, "surroundings_mm": 0.0}
    settings = SETTINGS | {"models": {"encoder": SETTINGS["models"]["encoder"], "ensemble": ensemble}}
    fit = matched_fit(OutputFolder(fit_small_model(tmp_path / "model", settings=settings, keep_controls=True)))
    matched = fit.ensemble_for(np.ones(CONTROLS))
    assert matched.surroundings is None
    np.testing.assert_array_equal(z_of(matched), z_of(fit.ensemble))


def test_a_factor_of_all_weights_changes_nothing(fit):
    weights = np.random.default_rng(0).uniform(0.2, 1, CONTROLS)
    one, other = (z_of(fit.ensemble_for(factor * weights)) for factor in (1.0, 0.01))
    np.testing.assert_allclose(one, other, atol=1e-3)
    assert np.abs(one - z_of(fit.ensemble)).max() > 0.05


def test_the_weights_enter_bounds_moments_and_calibration(model, fit):
    """A model without confounds, whose whitening has the weighted mean of the latents."""
    weights = np.random.default_rng(1).uniform(0.2, 1, CONTROLS)
    controls = fit.controls
    none = replace(fit, confounds=[np.zeros((CONTROLS, 0))] * len(fit.confounds))
    matched = none.ensemble_for(weights)
    svms = matched.scorers[0].scorer
    latents = controls.latents(range(CONTROLS))[:, :]
    np.testing.assert_allclose(svms.whitening.mean, np.average(latents, axis=0, weights=weights), atol=1e-4)
    nu = controls.fit.settings.detector.nu
    np.testing.assert_allclose(svms.field.total_dual, nu * effective_weights(weights).sum(), rtol=1e-6)
    assert (matched.calibration.scale != fit.ensemble.calibration.scale).any()
    assert (matched.surroundings.expected != fit.ensemble.surroundings.expected).any()


def test_controls_that_hardly_weigh_hardly_matter(tmp_path, fit, model):
    """The latents of a control are spoilt: with nearly no weight, the map is the same, with full weight it is not."""
    keys = fit.controls.keys
    spoilt = OutputFolder(fit_small_model(tmp_path / "spoilt", keep_controls=True))
    path = spoilt.latents / "codes" / f"{keys[0]}.npy"
    np.save(path, np.load(path) + np.float16(1.0))
    other = matched_fit(spoilt)
    changes = []
    for weight in (1e-3, 1.0):
        weights = np.array([weight, *np.ones(CONTROLS - 1)])
        before, after = (each.ensemble_for(weights).scorers[0].scorer for each in (fit, other))
        changes.append(np.abs(before.whitening.mean - after.whitening.mean).max())
    assert changes[0] < 0.02 * changes[1]


def test_a_model_without_its_controls_is_refused(tmp_path):
    model = OutputFolder(fit_small_model(tmp_path / "model"))
    with pytest.raises(UserError, match="holds no cross-validated scores of the training controls"):
        matched_fit(model)
