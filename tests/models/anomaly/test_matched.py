"""Models fitted anew for one patient."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.models.anomaly import fit as fitting
from voxout.models.anomaly.calibration import folds_of
from voxout.models.anomaly.control_nulls import ControlNulls
from voxout.models.anomaly.cross_fit import CrossFit
from voxout.models.anomaly.fit import fit_ensemble
from voxout.models.anomaly.matched import MatchedFit
from voxout.models.anomaly.stored_controls import NULL, StoredControls
from voxout.models.features.packed_masks import PackedMasks
from voxout.models.features.source import FeatureSource
from voxout.models.features.subsets import Subsets, effective_weights
from voxout.models.settings import FOLDS, ModelSettings
from voxout.pipeline.model.anomaly_model import AnomalyModel
from voxout.pipeline.model.whole_model import require_whole_model
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.intensity.standardisation import IntensityScale
from voxout.preprocessing.patches.volume_store import VolumeStore
from voxout.preprocessing.patches.voxel_mask import VoxelMask

from ...pipeline.model.small_model import CONTROLS, GRID, SETTINGS, brains, fit_small_model

YOUNG, OLD = 36, 12
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


def test_with_mirrored_controls_a_copy_has_the_weight_of_its_control(monkeypatch, tmp_path):
    monkeypatch.setattr(fitting, "is_symmetric", lambda grid: True)
    fit = matched_fit(OutputFolder(fit_small_model(tmp_path / "model", keep_controls=True)))
    assert fit.controls.originals.tolist() == [n for n in range(CONTROLS) for _ in range(2)]
    np.testing.assert_array_equal(z_of(fit.ensemble_for(np.ones(CONTROLS))), z_of(fit.ensemble))
    weights = np.random.default_rng(1).uniform(0.2, 1, CONTROLS)
    none = replace(fit, confounds=[np.zeros((2 * CONTROLS, 0))] * len(fit.confounds))
    svms = none.ensemble_for(weights).scorers[0].scorer
    latents = fit.controls.latents(range(2 * CONTROLS))[:, :]
    expected = np.average(latents, axis=0, weights=np.repeat(weights, 2))
    np.testing.assert_allclose(svms.whitening.mean, expected, atol=1e-4)
    nu = fit.controls.fit.settings.detector.nu
    alone = effective_weights(np.repeat(weights, 2)).sum() / 2
    np.testing.assert_allclose(svms.field.total_dual, nu * alone, rtol=1e-6)


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
    for weight in (1e-6, 1.0):
        weights = np.array([weight, *np.ones(CONTROLS - 1)])
        before, after = (each.ensemble_for(weights).scorers[0].scorer for each in (fit, other))
        changes.append(np.abs(before.whitening.mean - after.whitening.mean).max())
    assert changes[0] < 0.02 * changes[1]


@pytest.fixture(scope="module")
def of_two_ages(tmp_path_factory):
    """A model of 36 young and 12 old controls, whose brains differ thrice as much, and a function that draws brains."""
    mask = VoxelMask(Grid((16, 16, 16), np.diag([2.0, 2, 2, 1])), np.pad(np.ones((12, 12, 12), bool), 2))
    random = np.random.default_rng(0)

    def brain(sd):
        noise = ndimage.gaussian_filter(random.normal(size=(1, 16, 16, 16)), (0, 0.6, 0.6, 0.6))
        return (np.clip(0.5 + sd * noise / noise.std(), 0, 1) * mask.brain_mask).astype(np.float32)

    keys = tuple(f"sub-{number:02}" for number in range(YOUNG + OLD))
    volumes = np.stack([brain(0.02 if number < YOUNG else 0.06) for number in range(YOUNG + OLD)]).astype(np.float16)
    inside = np.broadcast_to(mask.brain_mask, volumes[:, 0].shape)
    store = VolumeStore(Path("nowhere"), keys, ("t1w",), mask, volumes, inside)
    source = FeatureSource(Channels(IntensityScale("percentiles", {"t1w": (0.0, 1.0)}), ()))
    parts = {"scorers": ["intensity"], "brain_components": 0, "surroundings_mm": 0.0}
    settings = ModelSettings.model_validate({"ensemble": parts})
    scratch = tmp_path_factory.mktemp("two-ages")
    ensemble = fit_ensemble(store, keys, source, settings, scratch, seed=0, jobs=1)
    packed = PackedMasks.pack((np.ones(mask.size, bool) for _ in keys), mask.size)
    stored = StoredControls(store, keys, packed, source, settings, scratch)
    subsets = Subsets(folds_of(keys, FOLDS, 0), [np.zeros((len(keys), 0))] * (FOLDS + 1))
    nulls = (stored.reader(f"{NULL}/intensity"),)
    controls = ControlNulls(stored, CrossFit(mask, packed, subsets, settings, 1), nulls, None)
    return MatchedFit.start(ensemble, controls), brain


def test_healthy_old_brains_have_no_more_high_scores_than_young_ones(of_two_ages):
    fit, brain = of_two_ages
    everywhere = np.ones(fit.ensemble.mask.size, bool)
    for age, sd, weights in (("young", 0.02, [1.0, 1e-6]), ("old", 0.06, [1e-6, 1.0])):
        brains = [brain(sd) for _ in range(10)]
        found = fit.ensemble_for(np.repeat(weights, [YOUNG, OLD])), fit.ensemble
        matched, plain = (
            np.mean([ensemble.predict(each, everywhere, jobs=1).z > 3.0902 for each in brains]) for ensemble in found
        )
        assert 0.0003 < matched < 0.0025, "one in a thousand"
        assert plain > 1.5 * matched if age == "old" else plain < 0.5 * matched


def test_a_faint_spot_is_seen_in_a_young_brain_that_is_compared_with_young_ones(of_two_ages):
    fit, brain = of_two_ages
    spotted = brain(0.02)
    spotted[0, 7:9, 7:9, 7:9] += 0.12
    spot = fit.ensemble.mask.transform(np.pad(np.ones((2, 2, 2)), 7)) > 0
    everywhere = np.ones(fit.ensemble.mask.size, bool)
    found = fit.ensemble_for(np.repeat([1.0, 1e-6], [YOUNG, OLD])), fit.ensemble
    matched, plain = (ensemble.predict(spotted, everywhere, jobs=1).z[spot].mean() for ensemble in found)
    assert matched > plain + 0.5


def test_a_model_without_its_controls_is_refused(tmp_path):
    model = OutputFolder(fit_small_model(tmp_path / "model"))
    with pytest.raises(UserError, match="holds no cross-validated scores of the training controls"):
        matched_fit(model)
