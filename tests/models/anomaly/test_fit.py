"""Fitting, combining and calibrating scorers on small simulated brains."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.models.anomaly import stored_controls
from voxout.models.anomaly.cross_fit import CrossFit
from voxout.models.anomaly.ensemble import Ensemble, combined
from voxout.models.anomaly.fit import fit_ensemble
from voxout.models.anomaly.scorers import Mahalanobis
from voxout.models.encoder.checkpoint import Checkpoint, Origin, build_autoencoder
from voxout.models.encoder.patch_shape import PatchShape
from voxout.models.features.extractors import VoxelFeatures
from voxout.models.features.feature_store import LatentStore
from voxout.models.features.source import SCORER_SPECS, FeatureSource
from voxout.models.features.subsets import Subsets
from voxout.models.settings import EnsembleSettings, ModelSettings
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.intensity.standardisation import IntensityScale
from voxout.preprocessing.patches.volume_store import VolumeStore
from voxout.preprocessing.patches.voxel_mask import VoxelMask

SHAPE = (24, 24, 24)
MASK = np.zeros(SHAPE, bool)
MASK[2:-2, 2:-2, 2:-2] = True
GRID = VoxelMask(Grid(SHAPE, np.diag([2.0, 2, 2, 1])), MASK)
PLAIN = SimpleNamespace(member=None, weight=1.0)
CHANNELS = Channels(IntensityScale("percentiles", {"t1w": (0.0, 1.0)}), ())
KEYS = tuple(f"sub-{number:02}" for number in range(30))
TRAIN, UNSEEN = KEYS[:20], KEYS[20:]
SETTINGS = ModelSettings.model_validate(
    {"ensemble": {"scorers": ["intensity", "patches"], "smoothing_mm": 0.0, "brain_components": 0}}
)


@pytest.fixture(scope="module")
def store():
    """A mean brain plus smooth noise for each subject, with a higher variance in the left half."""
    random = np.random.default_rng(0)
    mean = ndimage.gaussian_filter(random.normal(size=SHAPE), 3)
    mean = 0.3 + 0.4 * (mean - mean.min()) / np.ptp(mean)
    noise = ndimage.gaussian_filter(random.normal(size=(len(KEYS), *SHAPE)), [0, 0.6, 0.6, 0.6])
    sd = np.where(np.arange(SHAPE[0]) < SHAPE[0] // 2, 0.06, 0.02)[:, None, None]
    volumes = np.clip(mean + sd * noise / noise.std(), 0, 1)[:, None] * MASK
    inside = np.broadcast_to(MASK, (len(KEYS), *SHAPE))
    return VolumeStore(None, KEYS, ("t1w",), GRID, volumes.astype(np.float16), inside)


@pytest.fixture(scope="module")
def fitted(store, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    calls = []
    ensemble = fit_ensemble(
        store, TRAIN, FeatureSource(CHANNELS), SETTINGS, scratch, seed=0, jobs=1, progress=lambda *c: calls.append(c)
    )
    return ensemble, scratch, calls


def _z(ensemble, store, key, change=None):
    volume = store.volumes[store.index([key])[0]].astype(np.float32)
    if change is not None:
        volume[0] += change
    return ensemble.predict(volume, np.ones(GRID.size, bool), jobs=1).z


def test_maps_of_unseen_controls_are_calibrated(fitted, store):
    ensemble, _, _ = fitted
    z = np.concatenate([_z(ensemble, store, key) for key in UNSEEN])
    assert (z > 3.0902).mean() == pytest.approx(0.001, abs=0.0006)
    assert (z > 1.6449).mean() == pytest.approx(0.05, abs=0.012)
    assert np.median(z) == pytest.approx(0, abs=0.1)


def test_maps_are_calibrated_in_both_halves(fitted, store):
    ensemble, _, _ = fitted
    left = GRID.locations[:, 0] < SHAPE[0] // 2
    z = np.stack([_z(ensemble, store, key) for key in UNSEEN])
    for side in (left, ~left):
        assert (z[:, side] > 2.3263).mean() == pytest.approx(0.01, abs=0.006)


@pytest.mark.parametrize("controls", [3, 4, 8])
def test_maps_are_calibrated_with_few_controls(store, tmp_path, controls):
    """Regression test: with 3 and 4 controls, about 3 of a thousand voxels exceeded 3.09."""
    ensemble = fit_ensemble(store, TRAIN[:controls], FeatureSource(CHANNELS), SETTINGS, tmp_path, seed=0, jobs=1)
    z = np.concatenate([_z(ensemble, store, key) for key in KEYS[8:]])
    assert 0.0004 < (z > 3.0902).mean() < 0.0017


def test_controls_get_lower_scores_without_cross_fitting(fitted, store):
    """The null maps against maps from scorers fitted on the same controls."""
    ensemble, scratch, _ = fitted
    null = LatentStore.open(scratch / "null", TRAIN, GRID)
    cross_fitted = np.concatenate([null.subject(key)[:, 0] for key in TRAIN])
    refitted = np.concatenate([_z(ensemble, store, key) for key in TRAIN])
    assert (cross_fitted > 3.0902).mean() == pytest.approx(0.001, rel=0.1)
    assert (refitted > 3.0902).mean() < 0.6 * (cross_fitted > 3.0902).mean()


def test_a_dark_spot_stands_out_of_the_map(fitted, store):
    ensemble, _, _ = fitted
    spot = np.zeros(SHAPE, np.float32)
    spot[16:18, 11:13, 11:13] = -0.1
    z = _z(ensemble, store, UNSEEN[0], spot)
    inside = GRID.transform(spot) < 0
    assert z[inside].min() > 3
    assert z[inside].mean() > np.quantile(z[~inside], 0.999)


@pytest.mark.parametrize(
    ("scorers", "n_truncated"),
    [
        (["intensity"], 8),
        (["patches"], 1),
        (["ocsvm"], 8),
        *(
            pytest.param([name], n, marks=pytest.mark.slow)
            for name, n in (("intensity", 1), ("patches", 8), ("ocsvm", 1))
        ),
    ],
)
def test_truncated_controls_do_not_hide_lesions(store, tmp_path, scorers, n_truncated):
    """Background taken for dark tissue would hide dark lesions, and the edge would raise the tail everywhere."""
    truncated = replace(store, volumes=store.volumes.copy(), inside=np.array(store.inside))
    truncated.volumes[:n_truncated, ..., 14:], truncated.inside[:n_truncated, ..., 14:] = 0, False
    ensemble = {"scorers": scorers, "smoothing_mm": 2.0, "brain_components": 3}
    settings = ModelSettings.model_validate({"ensemble": ensemble, "encoder": {"latent_size": 4}})
    source = FeatureSource(CHANNELS, (_encoder(0, PatchShape("volume", 3)),))
    found = {}
    for name, controls in (("complete", store), ("truncated", truncated)):
        fitted = fit_ensemble(controls, TRAIN, source, settings, tmp_path / name, seed=0, jobs=1)
        found[name] = []
        for layer in (7, 13, 17):  # far from the truncation, next to it, beyond it
            spot = np.zeros(SHAPE, np.float32)
            spot[14:18, 9:15, layer - 1 : layer + 2] = -0.12
            found[name].append(_z(fitted, store, UNSEEN[0], spot)[GRID.transform(spot) < 0].mean())
        unseen = np.concatenate([_z(fitted, store, key) for key in UNSEEN])
        assert (unseen > 3.0902).mean() < 0.004, name
    assert min(found["complete"]) > 3
    assert (np.array(found["truncated"]) > 0.75 * np.array(found["complete"])).all(), found

    # A truncated brain has no map next to the truncation, and no false findings there.
    volume, brain = store.volumes[store.index([UNSEEN[1]])[0]].astype(np.float32), MASK.copy()
    volume[..., 14:], brain[..., 14:] = 0, False
    prediction = fitted.predict(volume, GRID.transform(brain), jobs=1)
    reach = 0 if scorers == ["intensity"] else 1
    np.testing.assert_array_equal(GRID.inverse_transform(prediction.inside), brain & (np.arange(24) < 14 - reach))
    assert (prediction.z[prediction.inside] > 3.0902).mean() < 0.01 and not prediction.z[~prediction.inside].any()


def test_all_controls_are_used_where_too_few_have_brain(store, tmp_path):
    """Only two scans have brain there, both of one participant and so in one fold."""
    keys = ("sub-1_ses-1", "sub-1_ses-2", *store.keys[2:])
    without = replace(store, keys=keys, volumes=store.volumes.copy(), inside=np.array(store.inside))
    without.volumes[2:, :, 18:], without.inside[2:, 18:] = 0, False
    ensemble = fit_ensemble(without, keys[:4], FeatureSource(CHANNELS), SETTINGS, tmp_path, seed=0, jobs=1)
    z = _z(ensemble, store, UNSEEN[0])
    assert np.isfinite(z).all()
    kept = GRID.locations[:, 0] < 17
    assert (z[kept] > 3.0902).mean() < 0.003


INTENSITY = SCORER_SPECS["intensity"]
EVERYWHERE = np.ones((20, GRID.size), bool)
FOLDS = [np.arange(first, 20, 5) for first in range(5)]


def _in_memory(features, confounds, **changes):
    """Cross-fit of features (20, P, d) without any file, and the function that gives them."""
    fit = CrossFit(GRID, EVERYWHERE, Subsets(FOLDS, [confounds] * 6), SETTINGS, jobs=1, **changes)
    return fit, lambda controls: features[controls]


def test_features_in_memory_are_cross_fitted_and_calibrated():
    features = np.random.default_rng(0).normal(size=(20, GRID.size, 1)).astype(np.float32)
    fit, read = _in_memory(features, np.zeros((20, 0)))
    _, _, scores = fit.one_pass(INTENSITY, read)
    for fold in FOLDS:
        scorer = Mahalanobis.fit(np.delete(features, fold, axis=0), GRID)
        # The standard deviations are stored with 11 bits.
        expected = np.stack([scorer.score(own) for own in features[fold]])
        np.testing.assert_allclose(scores[fold], expected, rtol=1e-3, atol=1e-4)
    scorer, null = fit.calibrated_scorer("intensity", INTENSITY, VoxelFeatures(GRID, (0,)), read)
    assert scorer.regression is None and scorer.smoothing is None
    unseen = np.random.default_rng(1).normal(size=(20, GRID.size, 1)).astype(np.float32)
    of_unseen = np.stack([scorer.calibration.neg_log10_p(scorer.scorer.score(own)) for own in unseen])
    calibration, combined_null = fit.combine([PLAIN], [lambda controls: null[controls, :, None]])
    for neg_log10_p in (null, of_unseen, combined_null, calibration.neg_log10_p(null)):
        assert (neg_log10_p > 2).mean() == pytest.approx(0.01, abs=0.003)


def test_null_scores_on_disk_are_those_in_memory(tmp_path):
    features = np.random.default_rng(0).normal(size=(20, GRID.size, 1)).astype(np.float32)
    nulls = []
    for changes in ({}, {"scratch": tmp_path}):
        fit, read = _in_memory(features, np.zeros((20, 0)), **changes)
        _, null = fit.calibrated_scorer("intensity", INTENSITY, VoxelFeatures(GRID, (0,)), read)
        nulls += [null, fit.combine([PLAIN], [lambda controls, null=null: null[controls, :, None]])[1]]
    np.testing.assert_array_equal(nulls[0], nulls[2])
    np.testing.assert_array_equal(nulls[1], nulls[3])
    assert isinstance(nulls[2], np.memmap) and not [*tmp_path.iterdir()]


def test_confounds_of_features_in_memory_are_regressed_out():
    random = np.random.default_rng(0)
    confounds = random.normal(size=(20, 1))
    features = (random.normal(size=(20, GRID.size, 1)) + 3 * confounds[:, None]).astype(np.float32)
    (plain, read), (residualised, _) = _in_memory(features, confounds[:, :0]), _in_memory(features, confounds)
    before, after = (fit.one_pass(INTENSITY, read)[2].mean(axis=1).std() for fit in (plain, residualised))
    assert after < 0.6 * before
    _, regression, _ = residualised.one_pass(INTENSITY, read)
    squares = ((confounds - confounds.mean()) ** 2).sum()
    assert regression.slopes.mean(dtype=float) == pytest.approx(3 * squares / (squares + 5), rel=0.01)  # ridge of 5


def test_progress_is_reported_at_every_step(fitted):
    _, _, calls = fitted
    total = 2 * 20 + 2 * (5 + 1)
    assert calls == [(done, total) for done in range(1, total + 1)]


def test_a_loaded_model_predicts_the_same_map(fitted, store, tmp_path):
    ensemble, _, _ = fitted
    ensemble.save(tmp_path)
    loaded = Ensemble.load(tmp_path, GRID, FeatureSource(CHANNELS), SETTINGS)
    np.testing.assert_array_equal(_z(loaded, store, UNSEEN[0]), _z(ensemble, store, UNSEEN[0]))
    other = VoxelMask(Grid(SHAPE, np.eye(4)), MASK)
    with pytest.raises(
        UserError,
        match="its calibration was fitted on another brain mask, expected that of the model. Fit the model again",
    ):
        Ensemble.load(tmp_path, other, FeatureSource(CHANNELS), SETTINGS)


def test_few_controls_are_left_out_one_at_a_time(store, tmp_path):
    ensemble = fit_ensemble(store, TRAIN[:3], FeatureSource(CHANNELS), SETTINGS, tmp_path, seed=0, jobs=1)
    assert np.isfinite(_z(ensemble, store, UNSEEN[0])).all()
    with pytest.raises(
        UserError, match="2 training controls, expected at least 3 for cross-validation. Add healthy scans"
    ):
        fit_ensemble(store, TRAIN[:2], FeatureSource(CHANNELS), SETTINGS, tmp_path, seed=0)


def test_sessions_are_grouped_by_participant(store, tmp_path):
    """Two participants with two sessions each count as two controls, not four."""
    keys = ("sub-1_ses-1", "sub-1_ses-2", "sub-2_ses-1", "sub-2_ses-2")
    sessions = replace(store, keys=(*keys, *store.keys[4:]))
    with pytest.raises(UserError, match="2 training controls, expected at least 3"):
        fit_ensemble(sessions, keys, FeatureSource(CHANNELS), SETTINGS, tmp_path, seed=0)


def test_scorers_and_map_are_calibrated_with_smoothing(store, tmp_path):
    settings = ModelSettings.model_validate(
        {"ensemble": {"scorers": ["intensity", "patches", "prototypes"], "smoothing_mm": 2.0, "brain_components": 0}}
    )
    ensemble = fit_ensemble(store, TRAIN, FeatureSource(CHANNELS), settings, tmp_path / "scratch", seed=0, jobs=1)
    everywhere = np.ones(GRID.size, bool)
    volumes = [store.volumes[row].astype(np.float32) for row in store.index(UNSEEN)]
    for scorer in ensemble.scorers:
        neg_log10_p = np.concatenate([scorer.neg_log10_p(volume, everywhere, jobs=1) for volume in volumes])
        assert (neg_log10_p > 2).mean() == pytest.approx(0.01, abs=0.006), scorer.name
    z = np.stack([ensemble.predict(volume, everywhere, jobs=1).z for volume in volumes])
    assert (z > 2.3263).mean() == pytest.approx(0.01, abs=0.004)

    ensemble.save(tmp_path / "saved")
    loaded = Ensemble.load(tmp_path / "saved", GRID, FeatureSource(CHANNELS), settings)
    np.testing.assert_array_equal(loaded.predict(volumes[0], everywhere, jobs=1).z, z[0])


def test_confounds_are_regressed_out_of_all_features_but_those_of_prototypes(store, tmp_path):
    scorers = {"scorers": ["patches", "prototypes"], "brain_components": 3}
    settings = ModelSettings.model_validate({"ensemble": scorers})
    ensemble = fit_ensemble(store, TRAIN, FeatureSource(CHANNELS), settings, tmp_path / "scratch", seed=0, jobs=1)
    assert [scorer.regression is None for scorer in ensemble.scorers] == [False, True]
    ensemble.save(tmp_path / "saved")
    loaded = Ensemble.load(tmp_path / "saved", GRID, FeatureSource(CHANNELS), settings)
    np.testing.assert_array_equal(_z(loaded, store, UNSEEN[0]), _z(ensemble, store, UNSEEN[0]))


ENSEMBLE = ModelSettings.model_validate(
    {
        "ensemble": {"scorers": ["mahalanobis", "intensity"], "smoothing_mm": 0.0, "brain_components": 0},
        "encoder": {"latent_size": 4},
    }
)


SQUARE = PatchShape("axial", 7)


def _encoder(seed, patch_shape=SQUARE):
    """An untrained encoder with random weights."""
    torch.manual_seed(seed)
    origin = Origin(("t1w",), (patch_shape,), 2.0, GRID.mask_hash, "", seed)
    autoencoder = build_autoencoder(ENSEMBLE, origin)
    autoencoder(
        (torch.rand(64, 1, *[patch_shape.size_vox] * len(patch_shape.axes)),)
    )  # updates the batch-norm statistics
    return Checkpoint(autoencoder.eval(), {}, ENSEMBLE, origin, 0, ())


def _fitted_on(store, scratch, *seeds):
    source = FeatureSource(CHANNELS, tuple(_encoder(seed) for seed in seeds))
    return fit_ensemble(store, TRAIN, source, ENSEMBLE, scratch, seed=0, jobs=1), source


@pytest.fixture(scope="module")
def ensemble(store, tmp_path_factory):
    return _fitted_on(store, tmp_path_factory.mktemp("ensemble"), 0, 1)


def _predict(ensemble, store, key):
    volume = store.volumes[store.index([key])[0]].astype(np.float32)
    return volume, ensemble.predict(volume, np.ones(GRID.size, bool), jobs=1)


def test_the_map_of_an_ensemble_is_calibrated(ensemble, store):
    z = np.concatenate([_predict(ensemble[0], store, key)[1].z for key in UNSEEN])
    assert (z > 3.0902).mean() == pytest.approx(0.001, abs=0.0006)
    assert np.median(z) == pytest.approx(0, abs=0.1)


def test_the_map_of_an_ensemble_is_the_mean_over_its_members(ensemble, store):
    ensemble, _ = ensemble
    assert [scorer.name for scorer in ensemble.scorers] == ["mahalanobis", "mahalanobis_2", "intensity"]
    volume, prediction = _predict(ensemble, store, UNSEEN[0])
    first, second, shared = (
        scorer.neg_log10_p(volume, np.ones(GRID.size, bool), jobs=1) for scorer in ensemble.scorers
    )
    members = [np.hypot(own.astype(float), shared) for own in (first, second)]  # p-norm 2, no smoothing
    mean, *members = (ensemble.calibration.neg_log10_p(v) for v in (np.mean(members, axis=0), *members))
    divisor = ensemble.surroundings.divisor(mean, np.ones(GRID.size, bool))  # that of the mean, for every member
    mean, *members = (ensemble.surroundings.calibration.z(v / divisor) for v in (mean, *members))
    np.testing.assert_allclose(prediction.z, mean, atol=1e-5)
    sd = np.abs(members[0] - members[1]) / np.sqrt(2)
    np.testing.assert_allclose(prediction.ensemble_sd, sd, atol=1e-5)
    assert prediction.ensemble_sd.mean() > 0.05


def test_two_equal_encoders_give_the_map_of_one(store, tmp_path):
    twice, _ = _fitted_on(store, tmp_path / "twice", 0, 0)
    once, _ = _fitted_on(store, tmp_path / "once", 0)
    _, ours = _predict(twice, store, UNSEEN[0])
    _, alone = _predict(once, store, UNSEEN[0])
    np.testing.assert_array_equal(ours.z, alone.z)
    assert alone.ensemble_sd is None and not ours.ensemble_sd.any()


def test_a_loaded_ensemble_predicts_the_same_map(ensemble, store, tmp_path):
    ensemble, source = ensemble
    ensemble.save(tmp_path)
    loaded = Ensemble.load(tmp_path, GRID, source, ENSEMBLE)
    _, ours = _predict(ensemble, store, UNSEEN[0])
    _, again = _predict(loaded, store, UNSEEN[0])
    np.testing.assert_array_equal(again.z, ours.z)
    np.testing.assert_array_equal(again.ensemble_sd, ours.ensemble_sd)


AGED = ModelSettings.model_validate(
    {
        "ensemble": {
            "scorers": ["intensity", "patches"],
            "smoothing_mm": 0.0,
            "brain_components": 0,
            "covariates": ["age"],
        }
    }
)


def _aged(store):
    """Subjects of 20 to 80 years; the intensity of the right half decreases with age."""
    ages = np.random.default_rng(3).uniform(20, 80, len(KEYS))
    right = np.arange(SHAPE[0])[:, None, None] >= SHAPE[0] // 2
    darker = (0.02 * (ages - 50) / 10)[:, None, None, None] * right * MASK
    volumes = (store.volumes.astype(np.float32) - darker[:, None]).clip(0, 1).astype(np.float16)
    participants = [
        SubjectRecord(key.removeprefix("sub-"), "control", {"t1w": Path("t1.nii")}, age=float(age))
        for key, age in zip(KEYS, ages, strict=True)
    ]
    return replace(store, volumes=volumes), participants


def test_the_effect_of_age_is_regressed_out(store, tmp_path):
    aged, participants = _aged(store)
    right = GRID.locations[:, 0] >= SHAPE[0] // 2
    plain = fit_ensemble(aged, TRAIN, FeatureSource(CHANNELS), SETTINGS, tmp_path / "plain", seed=0, jobs=1)
    residualised = fit_ensemble(
        aged,
        TRAIN,
        FeatureSource(CHANNELS),
        AGED,
        tmp_path / "residualised",
        seed=0,
        participants=participants[:20],
        jobs=1,
    )
    unseen = list(zip(UNSEEN, participants[20:], strict=True))

    def predict(ensemble, key, participant=None):
        volume = aged.volumes[aged.index([key])[0]].astype(np.float32)
        return ensemble.predict(volume, np.ones(GRID.size, bool), participant, jobs=1).z

    z = np.concatenate([predict(residualised, key, participant) for key, participant in unseen])
    assert (z > 3.0902).mean() == pytest.approx(0.001, abs=0.0008)

    def median(ensemble, *, extreme, with_age):
        far = [(key, p) for key, p in unseen if (abs(p.age - 50) > 15) == extreme]
        return np.median([predict(ensemble, key, p if with_age else None)[right] for key, p in far])

    before = median(plain, extreme=True, with_age=False) - median(plain, extreme=False, with_age=False)
    after = median(residualised, extreme=True, with_age=True) - median(residualised, extreme=False, with_age=True)
    assert before > 0.8 > 0.4 > abs(after)
    # A missing age is the mean age, and a loaded model gives the same map.
    key, participant = unseen[0]
    without_age = replace(participant, age=None)
    np.testing.assert_array_equal(predict(residualised, key, without_age), predict(residualised, key))
    assert (predict(residualised, key, without_age) != predict(residualised, key, participant)).any()
    residualised.save(tmp_path / "saved")
    loaded = Ensemble.load(tmp_path / "saved", GRID, FeatureSource(CHANNELS), AGED)
    np.testing.assert_array_equal(predict(loaded, key, participant), predict(residualised, key, participant))
    with pytest.raises(UserError, match="names age, and age is not given for any of the 20 training controls"):
        without_age = [replace(participant, age=None) for participant in participants[:20]]
        fit_ensemble(
            aged, TRAIN, FeatureSource(CHANNELS), AGED, tmp_path / "none", seed=0, participants=without_age, jobs=1
        )


def test_brain_components_remove_the_effect_of_an_unknown_age(store, tmp_path):
    """As with age as a covariate, but without the age; a dark spot is still found."""
    aged, participants = _aged(store)
    right = GRID.locations[:, 0] >= SHAPE[0] // 2
    fits = {
        brain_components: fit_ensemble(
            aged,
            TRAIN,
            FeatureSource(CHANNELS),
            SETTINGS.model_copy(
                update={"ensemble": SETTINGS.ensemble.model_copy(update={"brain_components": brain_components})}
            ),
            tmp_path / str(brain_components),
            seed=0,
            jobs=1,
        )
        for brain_components in (0, 3)
    }
    assert [ensemble.confounds.size for ensemble in fits.values()] == [0, 3]
    far = {key: abs(participant.age - 50) > 15 for key, participant in zip(KEYS, participants, strict=True)}
    maps = {n: {key: _z(ensemble, aged, key) for key in UNSEEN} for n, ensemble in fits.items()}

    def effect_of_age(brain_components):
        values = {
            extreme: [maps[brain_components][key][right] for key in UNSEEN if far[key] == extreme]
            for extreme in (True, False)
        }
        return np.median(values[True]) - np.median(values[False])

    assert effect_of_age(0) > 0.8 > 0.4 > abs(effect_of_age(3))
    assert (np.stack([*maps[3].values()]) > 3.0902).mean() == pytest.approx(0.001, abs=0.0008)
    spot = np.zeros(SHAPE, np.float32)
    spot[16:18, 11:13, 11:13] = -0.1
    assert _z(fits[3], aged, UNSEEN[0], spot)[GRID.transform(spot) < 0].min() > 3
    fits[3].save(tmp_path / "saved")
    loaded = Ensemble.load(tmp_path / "saved", GRID, FeatureSource(CHANNELS), SETTINGS)
    np.testing.assert_array_equal(_z(loaded, aged, UNSEEN[0]), maps[3][UNSEEN[0]])


def test_brain_components_are_cross_fitted_and_appended_to_the_covariates(store, tmp_path, monkeypatch):
    aged, participants = _aged(store)
    samples = []
    learn = stored_controls.BrainComponents.learn
    monkeypatch.setattr(
        stored_controls.BrainComponents,
        "learn",
        lambda voxels, brains, size: samples.append(brains) or learn(voxels, brains, size),
    )
    changes = {"scorers": ["intensity"], "smoothing_mm": 0.0, "brain_components": 2, "covariates": ["age"]}
    settings = ModelSettings.model_validate({"ensemble": changes})
    ensemble = fit_ensemble(
        aged, TRAIN, FeatureSource(CHANNELS), settings, tmp_path / "a", seed=0, participants=participants[:20], jobs=1
    )
    assert [len(brains) for brains in samples] == [16] * 5 + [20]
    shared = [sum(bool((brain == other).all()) for brain in samples[0] for other in part) for part in samples[1:]]
    assert shared == [12, 12, 12, 12, 16], "each fold is left out once"
    assert ensemble.confounds.size == 3
    volume = aged.volumes[20].astype(np.float32)
    values = ensemble.confounds.values(volume, np.ones(GRID.size, bool), participants[20])
    np.testing.assert_array_equal(values[:1], ensemble.confounds.covariates.values(participants[20]))
    without_age = ensemble.confounds.values(volume, np.ones(GRID.size, bool))
    np.testing.assert_array_equal(without_age, [0, *values[1:]])


def test_the_number_of_components_depends_on_participants_not_scans(store, tmp_path):
    keys = [f"sub-{n // 5:02}_ses-{n % 5}" for n in range(20)]  # of four participants
    scans = replace(store, keys=(*keys, *KEYS[20:]))
    settings = ModelSettings.model_validate({"ensemble": {"scorers": ["intensity"], "smoothing_mm": 0.0}})
    assert fit_ensemble(scans, keys, FeatureSource(CHANNELS), settings, tmp_path, seed=0, jobs=1).confounds.size == 0


@pytest.mark.parametrize("lost", ["confounds.json", "components.safetensors", "intensity/confounds.safetensors"])
def test_a_model_without_its_confounds_is_refused(store, tmp_path, lost):
    settings = ModelSettings.model_validate({"ensemble": {"scorers": ["intensity"], "smoothing_mm": 0.0}})
    fit_ensemble(store, TRAIN, FeatureSource(CHANNELS), settings, tmp_path / "scratch", seed=0, jobs=1).save(
        tmp_path / "model"
    )
    (tmp_path / "model" / lost).unlink()
    with pytest.raises(UserError, match="Run the stage fit again"):
        Ensemble.load(tmp_path / "model", GRID, FeatureSource(CHANNELS), settings)


def test_without_derived_maps_the_intensity_is_scored_once():
    assert [*FeatureSource(CHANNELS).specs(("derived_features", "patches", "intensity"))] == ["patches", "intensity"]
    assert [*FeatureSource(CHANNELS).specs(("derived_features", "patches"))] == ["derived_features", "patches"]


def test_a_scorer_of_a_missing_derived_map_is_refused(store, tmp_path):
    settings = ModelSettings.model_validate({"ensemble": {"scorers": ["intensity", "junction"]}})
    with pytest.raises(UserError, match="names junction, but the derived maps are none. Add junction to preproc"):
        fit_ensemble(store, TRAIN, FeatureSource(CHANNELS), settings, tmp_path, seed=0)


def test_which_scorers_need_an_encoder():
    for name, spec in SCORER_SPECS.items():
        assert EnsembleSettings(scorers=(name,)).needs_encoder == (spec.features == "codes")
    assert not EnsembleSettings(scorers=("junction",)).needs_encoder


@given(p_norm=st.floats(1, 100), one=st.floats(0, 5000), other=st.floats(0, 5000))
def test_the_p_norm_lies_between_maximum_and_sum(p_norm, one, other):
    everywhere = np.ones(GRID.size, bool)
    neg_log10_ps = [np.full(GRID.size, value, np.float32) for value in (one, other)]
    found = combined(neg_log10_ps, everywhere, p_norm)[0]
    assert np.isfinite(found)
    assert max(one, other) * (1 - 1e-5) - 1e-3 <= found <= (one + other) * (1 + 1e-5) + 1e-3


@pytest.fixture(scope="module")
def symmetric(store):
    """The same brains on a grid that is symmetric about x = 0."""
    affine = np.diag([2.0, 2, 2, 1])
    affine[0, 3] = 1.0 - SHAPE[0]
    return replace(store, grid=VoxelMask(Grid(SHAPE, affine), MASK))


def _mirrored(on: bool) -> ModelSettings:
    ensemble = SETTINGS.ensemble.model_copy(update={"mirrored_controls": on, "scorers": ("intensity",)})
    return SETTINGS.model_copy(update={"ensemble": ensemble})


def test_mirrored_controls_count_like_other_controls(symmetric, tmp_path):
    """A fit on controls and their copies is one on twice as many controls, which are folded together."""
    source = FeatureSource(CHANNELS)
    found = fit_ensemble(symmetric, TRAIN, source, _mirrored(True), tmp_path / "mirrored", seed=3, jobs=1)
    keys = tuple(name for key in TRAIN for name in (key, f"{key}_ses-m"))
    volumes = np.stack(
        [array for key in TRAIN for array in (symmetric.volumes_of(key), symmetric.volumes_of(key)[:, ::-1])]
    )
    inside = np.broadcast_to(MASK, (len(keys), *SHAPE))
    twice = replace(symmetric, keys=keys, volumes=volumes, inside=inside)
    expected = fit_ensemble(twice, keys, source, _mirrored(False), tmp_path / "twice", seed=3, jobs=1)
    for key in UNSEEN[:3]:
        own, other = (_z(ensemble, symmetric, key) for ensemble in (found, expected))
        np.testing.assert_allclose(own, other, atol=1e-5)
    names = {path.stem for path in (tmp_path / "mirrored" / "null").glob("*.npy")}
    assert names == set(TRAIN), "the maps of the copies are not kept"
    assert len([*(tmp_path / "mirrored" / "null" / "intensity").glob("*.npy")]) == 2 * len(TRAIN)


def test_the_model_of_mirrored_controls_is_symmetric(symmetric, tmp_path):
    source = FeatureSource(CHANNELS)
    ensemble = fit_ensemble(symmetric, TRAIN, source, _mirrored(True), tmp_path, seed=3, jobs=1)
    channels = symmetric.volumes_of(UNSEEN[0]).astype(np.float32)
    inside = np.ones(GRID.size, bool)
    own, mirrored = (ensemble.predict(each, inside).z for each in (channels, np.ascontiguousarray(channels[:, ::-1])))
    np.testing.assert_allclose(GRID.inverse_transform(mirrored)[::-1], GRID.inverse_transform(own), atol=1e-4)
    plain = fit_ensemble(symmetric, TRAIN, source, _mirrored(False), tmp_path / "plain", seed=3, jobs=1)
    assert np.abs(plain.predict(channels, inside).z - own).max() > 0.05
