"""Fitting, fusing and calibrating on small brains whose truth is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.models.anomaly import fit
from voxout.models.anomaly.ensemble import AnomalyModel, combined
from voxout.models.anomaly.fit import fit_anomaly_model
from voxout.models.encoder.checkpoint import Checkpoint, Origin, build_autoencoder
from voxout.models.encoder.patch_shape import PatchShape
from voxout.models.features.feature_store import LatentStore
from voxout.models.features.source import SCORER_SPECS, FeatureSource
from voxout.models.settings import EnsembleSettings, ModelSettings
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.intensity.standardisation import IntensityScale
from voxout.preprocessing.patches.volume_store import VolumeStore
from voxout.preprocessing.patches.voxel_mask import VoxelMask

SHAPE = (24, 24, 24)
MASK = np.zeros(SHAPE, bool)
MASK[2:-2, 2:-2, 2:-2] = True
GRID = VoxelMask(Grid(SHAPE, np.diag([2.0, 2, 2, 1])), MASK)
CHANNELS = Channels(IntensityScale("percentiles", {"t1w": (0.0, 1.0)}), ())
KEYS = tuple(f"sub-{number:02}" for number in range(30))
TRAIN, UNSEEN = KEYS[:20], KEYS[20:]
SETTINGS = ModelSettings.model_validate(
    {"ensemble": {"scorers": ["intensity", "patches"], "smoothing_mm": 0.0, "patterns": 0}}
)


@pytest.fixture(scope="module")
def store():
    """A mean brain, and noise of each subject's own that is coherent over neighbours and wilder on the left."""
    random = np.random.default_rng(0)
    mean = ndimage.gaussian_filter(random.normal(size=SHAPE), 3)
    mean = 0.3 + 0.4 * (mean - mean.min()) / np.ptp(mean)
    noise = ndimage.gaussian_filter(random.normal(size=(len(KEYS), *SHAPE)), [0, 0.6, 0.6, 0.6])
    wild = np.where(np.arange(SHAPE[0]) < SHAPE[0] // 2, 0.06, 0.02)[:, None, None]
    volumes = np.clip(mean + wild * noise / noise.std(), 0, 1)[:, None] * MASK
    inside = np.broadcast_to(MASK, (len(KEYS), *SHAPE))
    return VolumeStore(None, KEYS, ("t1w",), GRID, volumes.astype(np.float16), inside)


@pytest.fixture(scope="module")
def fitted(store, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    calls = []
    ensemble = fit_anomaly_model(
        store, TRAIN, FeatureSource(CHANNELS), SETTINGS, scratch, seed=0, jobs=1, progress=lambda *c: calls.append(c)
    )
    return ensemble, scratch, calls


def _z(ensemble, store, key, change=None):
    volume = store.volumes[store.index([key])[0]].astype(np.float32)
    if change is not None:
        volume[0] += change
    return ensemble.predict(volume, np.ones(GRID.size, bool), jobs=1).z


def test_the_map_of_an_unseen_control_reads_in_standard_deviations(fitted, store):
    ensemble, _, _ = fitted
    z = np.concatenate([_z(ensemble, store, key) for key in UNSEEN])
    assert (z > 3.0902).mean() == pytest.approx(0.001, abs=0.0006)
    assert (z > 1.6449).mean() == pytest.approx(0.05, abs=0.012)
    assert np.median(z) == pytest.approx(0, abs=0.1)


def test_it_does_so_on_the_wild_side_as_on_the_calm_one(fitted, store):
    ensemble, _, _ = fitted
    left = GRID.locations[:, 0] < SHAPE[0] // 2
    z = np.stack([_z(ensemble, store, key) for key in UNSEEN])
    for side in (left, ~left):
        assert (z[:, side] > 2.3263).mean() == pytest.approx(0.01, abs=0.006)


@pytest.mark.parametrize("controls", [3, 4, 8])
def test_few_controls_do_not_make_unseen_brains_look_wild(store, tmp_path, controls):
    """With 3 and 4, some 3 of a thousand voxels did exceed 3.09."""
    ensemble = fit_anomaly_model(store, TRAIN[:controls], FeatureSource(CHANNELS), SETTINGS, tmp_path, seed=0, jobs=1)
    z = np.concatenate([_z(ensemble, store, key) for key in KEYS[8:]])
    assert 0.0004 < (z > 3.0902).mean() < 0.0017


def test_a_control_scored_by_itself_would_look_too_healthy(fitted, store):
    """Why there is cross-fitting: the same controls, read by readers that were fitted on them."""
    ensemble, scratch, _ = fitted
    null = LatentStore.open(scratch / "null", TRAIN, GRID)
    apart = np.concatenate([null.subject(key)[:, 0] for key in TRAIN])
    seen = np.concatenate([_z(ensemble, store, key) for key in TRAIN])
    assert (apart > 3.0902).mean() == pytest.approx(0.001, rel=0.1)
    assert (seen > 3.0902).mean() < 0.6 * (apart > 3.0902).mean()


def test_what_does_not_fit_stands_out_of_both_readers_and_most_of_all_of_the_map(fitted, store):
    ensemble, _, _ = fitted
    spot = np.zeros(SHAPE, np.float32)
    spot[16:18, 11:13, 11:13] = -0.1
    z = _z(ensemble, store, UNSEEN[0], spot)
    inside = GRID.transform(spot) < 0
    assert z[inside].min() > 3
    assert z[inside].mean() > np.quantile(z[~inside], 0.999)


@pytest.mark.parametrize("scorers", [["intensity"], ["patches"], ["ocsvm"]])
@pytest.mark.parametrize("cut", [1, 8])
def test_a_control_that_was_cut_short_says_nothing_there_and_hides_nothing_elsewhere(store, tmp_path, scorers, cut):
    """Taken for darkness, it would hide the dark lesion of another brain; its edge would raise the tail everywhere."""
    short = replace(store, volumes=store.volumes.copy(), inside=np.array(store.inside))
    short.volumes[:cut, ..., 14:], short.inside[:cut, ..., 14:] = 0, False
    ensemble = {"scorers": scorers, "smoothing_mm": 2.0, "patterns": 3}
    settings = ModelSettings.model_validate({"ensemble": ensemble, "encoder": {"latent_size": 4}})
    source = FeatureSource(CHANNELS, (_encoder(0, PatchShape("volume", 3)),))
    found = {}
    for name, controls in (("whole", store), ("short", short)):
        fitted = fit_anomaly_model(controls, TRAIN, source, settings, tmp_path / name, seed=0, jobs=1)
        found[name] = []
        for layer in (7, 13, 17):  # far from the cut, beside it, beyond it
            spot = np.zeros(SHAPE, np.float32)
            spot[14:18, 9:15, layer - 1 : layer + 2] = -0.12
            found[name].append(_z(fitted, store, UNSEEN[0], spot)[GRID.transform(spot) < 0].mean())
        unseen = np.concatenate([_z(fitted, store, key) for key in UNSEEN])
        assert (unseen > 3.0902).mean() < 0.004, name
    assert min(found["whole"]) > 3
    assert (np.array(found["short"]) > 0.75 * np.array(found["whole"])).all(), found

    # And a brain that is cut itself has no map beside the cut, and no sheet of findings.
    volume, brain = store.volumes[store.index([UNSEEN[1]])[0]].astype(np.float32), MASK.copy()
    volume[..., 14:], brain[..., 14:] = 0, False
    prediction = fitted.predict(volume, GRID.transform(brain), jobs=1)
    reach = 0 if scorers == ["intensity"] else 1
    np.testing.assert_array_equal(GRID.inverse_transform(prediction.inside), brain & (np.arange(24) < 14 - reach))
    assert (prediction.z[prediction.inside] > 3.0902).mean() < 0.01 and not prediction.z[~prediction.inside].any()


def test_where_hardly_a_control_is_left_all_count_as_found(store, tmp_path):
    """Brain in two scans, both of one person, who is left out with both."""
    keys = ("sub-1_ses-1", "sub-1_ses-2", *store.keys[2:])
    without = replace(store, keys=keys, volumes=store.volumes.copy(), inside=np.array(store.inside))
    without.volumes[2:, :, 18:], without.inside[2:, 18:] = 0, False
    ensemble = fit_anomaly_model(without, keys[:4], FeatureSource(CHANNELS), SETTINGS, tmp_path, seed=0, jobs=1)
    z = _z(ensemble, store, UNSEEN[0])
    assert np.isfinite(z).all()
    kept = GRID.locations[:, 0] < 17
    assert (z[kept] > 3.0902).mean() < 0.003


def test_every_step_is_told(fitted):
    _, _, calls = fitted
    total = 2 * 20 + 2 * (5 + 1)
    assert calls == [(done, total) for done in range(1, total + 1)]


def test_saved_and_loaded_it_draws_the_same_map(fitted, store, tmp_path):
    ensemble, _, _ = fitted
    ensemble.save(tmp_path)
    loaded = AnomalyModel.load(tmp_path, GRID, FeatureSource(CHANNELS), SETTINGS)
    np.testing.assert_array_equal(_z(loaded, store, UNSEEN[0]), _z(ensemble, store, UNSEEN[0]))
    turned = VoxelMask(Grid(SHAPE, np.eye(4)), MASK)
    with pytest.raises(UserError, match="its calibration is of another brain mask. Fit the model again"):
        AnomalyModel.load(tmp_path, turned, FeatureSource(CHANNELS), SETTINGS)


def test_few_controls_are_left_out_one_at_a_time(store, tmp_path):
    ensemble = fit_anomaly_model(store, TRAIN[:3], FeatureSource(CHANNELS), SETTINGS, tmp_path, seed=0, jobs=1)
    assert np.isfinite(_z(ensemble, store, UNSEEN[0])).all()
    with pytest.raises(UserError, match="2 training controls, expected at least 3: each is scored by detectors"):
        fit_anomaly_model(store, TRAIN[:2], FeatureSource(CHANNELS), SETTINGS, tmp_path, seed=0)


def test_sessions_of_a_person_do_not_vouch_for_each_other(store, tmp_path):
    """Two persons with two sessions each are two controls, not four."""
    keys = ("sub-1_ses-1", "sub-1_ses-2", "sub-2_ses-1", "sub-2_ses-2")
    sessions = replace(store, keys=(*keys, *store.keys[4:]))
    with pytest.raises(UserError, match="2 training controls, expected at least 3"):
        fit_anomaly_model(sessions, keys, FeatureSource(CHANNELS), SETTINGS, tmp_path, seed=0)


def test_with_smoothing_the_readers_and_their_map_stay_calibrated(store, tmp_path):
    settings = ModelSettings.model_validate(
        {"ensemble": {"scorers": ["intensity", "patches"], "smoothing_mm": 2.0, "patterns": 0}}
    )
    ensemble = fit_anomaly_model(store, TRAIN, FeatureSource(CHANNELS), settings, tmp_path / "scratch", seed=0, jobs=1)
    everywhere = np.ones(GRID.size, bool)
    volumes = [store.volumes[row].astype(np.float32) for row in store.index(UNSEEN)]
    for reader in ensemble.scorers:
        neg_log10_p = np.concatenate([reader.neg_log10_p(volume, everywhere, jobs=1) for volume in volumes])
        assert (neg_log10_p > 2).mean() == pytest.approx(0.01, abs=0.005), reader.name
    z = np.stack([ensemble.predict(volume, everywhere, jobs=1).z for volume in volumes])
    assert (z > 2.3263).mean() == pytest.approx(0.01, abs=0.004)

    ensemble.save(tmp_path / "saved")
    loaded = AnomalyModel.load(tmp_path / "saved", GRID, FeatureSource(CHANNELS), settings)
    np.testing.assert_array_equal(loaded.predict(volumes[0], everywhere, jobs=1).z, z[0])


ENSEMBLE = ModelSettings.model_validate(
    {
        "ensemble": {"scorers": ["mahalanobis", "intensity"], "smoothing_mm": 0.0, "patterns": 0},
        "encoder": {"latent_size": 4},
    }
)


SQUARE = PatchShape("axial", 7)


def _encoder(seed, patch_shape=SQUARE):
    """Not trained: random convolutions see something, too."""
    torch.manual_seed(seed)
    origin = Origin(("t1w",), (patch_shape,), 2.0, GRID.mask_hash, "", seed)
    autoencoder = build_autoencoder(ENSEMBLE, origin)
    autoencoder(
        (torch.rand(64, 1, *[patch_shape.size_vox] * len(patch_shape.axes)),)
    )  # moves the batch-norm statistics
    return Checkpoint(autoencoder.eval(), {}, ENSEMBLE, origin, 0, ())


def _fitted_on(store, scratch, *seeds):
    source = FeatureSource(CHANNELS, tuple(_encoder(seed) for seed in seeds))
    return fit_anomaly_model(store, TRAIN, source, ENSEMBLE, scratch, seed=0, jobs=1), source


@pytest.fixture(scope="module")
def ensemble(store, tmp_path_factory):
    return _fitted_on(store, tmp_path_factory.mktemp("ensemble"), 0, 1)


def _read(ensemble, store, key):
    volume = store.volumes[store.index([key])[0]].astype(np.float32)
    return volume, ensemble.predict(volume, np.ones(GRID.size, bool), jobs=1)


def test_an_ensembles_map_is_calibrated_too(ensemble, store):
    z = np.concatenate([_read(ensemble[0], store, key)[1].z for key in UNSEEN])
    assert (z > 3.0902).mean() == pytest.approx(0.001, abs=0.0006)
    assert np.median(z) == pytest.approx(0, abs=0.1)


def test_an_ensembles_map_is_the_mean_of_its_members_each_with_the_readers_that_need_none(ensemble, store):
    ensemble, _ = ensemble
    assert [reader.name for reader in ensemble.scorers] == ["mahalanobis", "mahalanobis_2", "intensity"]
    volume, prediction = _read(ensemble, store, UNSEEN[0])
    first, second, shared = (
        reader.neg_log10_p(volume, np.ones(GRID.size, bool), jobs=1) for reader in ensemble.scorers
    )
    each = [np.hypot(own.astype(float), shared) for own in (first, second)]  # power 2, no smoothing
    np.testing.assert_allclose(prediction.z, ensemble.calibration.z(np.mean(each, axis=0)), atol=1e-5)
    apart = np.abs(ensemble.calibration.z(each[0]) - ensemble.calibration.z(each[1])) / np.sqrt(2)
    np.testing.assert_allclose(prediction.ensemble_sd, apart, atol=1e-5)
    assert prediction.ensemble_sd.mean() > 0.05


def test_twice_the_same_encoder_is_as_good_as_once(store, tmp_path):
    twice, _ = _fitted_on(store, tmp_path / "twice", 0, 0)
    once, _ = _fitted_on(store, tmp_path / "once", 0)
    _, ours = _read(twice, store, UNSEEN[0])
    _, alone = _read(once, store, UNSEEN[0])
    np.testing.assert_array_equal(ours.z, alone.z)
    assert alone.ensemble_sd is None and not ours.ensemble_sd.any()


def test_a_saved_ensemble_draws_the_same_map(ensemble, store, tmp_path):
    ensemble, source = ensemble
    ensemble.save(tmp_path)
    loaded = AnomalyModel.load(tmp_path, GRID, source, ENSEMBLE)
    _, ours = _read(ensemble, store, UNSEEN[0])
    _, again = _read(loaded, store, UNSEEN[0])
    np.testing.assert_array_equal(again.z, ours.z)
    np.testing.assert_array_equal(again.ensemble_sd, ours.ensemble_sd)


AGED = ModelSettings.model_validate(
    {"ensemble": {"scorers": ["intensity", "patches"], "smoothing_mm": 0.0, "patterns": 0, "covariates": ["age"]}}
)


def _aged(store):
    """Every decade, from 20 years to 80, takes a little from the intensity of the right half."""
    ages = np.random.default_rng(3).uniform(20, 80, len(KEYS))
    right = np.arange(SHAPE[0])[:, None, None] >= SHAPE[0] // 2
    darker = (0.02 * (ages - 50) / 10)[:, None, None, None] * right * MASK
    volumes = (store.volumes.astype(np.float32) - darker[:, None]).clip(0, 1).astype(np.float16)
    participants = [
        SubjectRecord(key.removeprefix("sub-"), "control", {"t1w": Path("t1.nii")}, age=float(age))
        for key, age in zip(KEYS, ages, strict=True)
    ]
    return replace(store, volumes=volumes), participants


def test_adjusted_for_age_the_young_and_the_old_are_as_calm_as_the_rest(store, tmp_path):
    aged, participants = _aged(store)
    right = GRID.locations[:, 0] >= SHAPE[0] // 2
    plain = fit_anomaly_model(aged, TRAIN, FeatureSource(CHANNELS), SETTINGS, tmp_path / "plain", seed=0, jobs=1)
    residualised = fit_anomaly_model(
        aged,
        TRAIN,
        FeatureSource(CHANNELS),
        AGED,
        tmp_path / "adjusted",
        seed=0,
        participants=participants[:20],
        jobs=1,
    )
    unseen = list(zip(UNSEEN, participants[20:], strict=True))

    def read(ensemble, key, participant=None, change=0.0):
        volume = aged.volumes[aged.index([key])[0]].astype(np.float32) + change
        return ensemble.predict(volume, np.ones(GRID.size, bool), participant, jobs=1).z

    z = np.concatenate([read(residualised, key, participant) for key, participant in unseen])
    assert (z > 3.0902).mean() == pytest.approx(0.001, abs=0.0008)

    def median(ensemble, *, extreme, with_person):
        far = [(key, p) for key, p in unseen if (abs(p.age - 50) > 15) == extreme]
        return np.median([read(ensemble, key, p if with_person else None)[right] for key, p in far])

    before = median(plain, extreme=True, with_person=False) - median(plain, extreme=False, with_person=False)
    after = median(residualised, extreme=True, with_person=True) - median(residualised, extreme=False, with_person=True)
    assert before > 0.8 > 0.4 > abs(after)
    # Of whom nothing is known is read at the mean age, and a model on disk is the model.
    key, participant = unseen[0]
    nameless = replace(participant, age=None)
    np.testing.assert_array_equal(read(residualised, key, nameless), read(residualised, key))
    assert (read(residualised, key, nameless) != read(residualised, key, participant)).any()
    residualised.save(tmp_path / "saved")
    loaded = AnomalyModel.load(tmp_path / "saved", GRID, FeatureSource(CHANNELS), AGED)
    np.testing.assert_array_equal(read(loaded, key, participant), read(residualised, key, participant))
    with pytest.raises(UserError, match="names age, and age is not given for any of them"):
        nobody = [replace(participant, age=None) for participant in participants[:20]]
        fit_anomaly_model(
            aged, TRAIN, FeatureSource(CHANNELS), AGED, tmp_path / "none", seed=0, participants=nobody, jobs=1
        )


def test_what_brains_have_in_common_is_told_by_the_brain_itself(store, tmp_path):
    """The same as with age, and nobody tells it; and a spot is still found."""
    aged, participants = _aged(store)
    right = GRID.locations[:, 0] >= SHAPE[0] // 2
    fits = {
        brain_components: fit_anomaly_model(
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

    def too_high(brain_components):
        of = {
            extreme: [maps[brain_components][key][right] for key in UNSEEN if far[key] == extreme]
            for extreme in (True, False)
        }
        return np.median(of[True]) - np.median(of[False])

    assert too_high(0) > 0.8 > 0.4 > abs(too_high(3))
    assert (np.stack([*maps[3].values()]) > 3.0902).mean() == pytest.approx(0.001, abs=0.0008)
    spot = np.zeros(SHAPE, np.float32)
    spot[16:18, 11:13, 11:13] = -0.1
    assert _z(fits[3], aged, UNSEEN[0], spot)[GRID.transform(spot) < 0].min() > 3
    fits[3].save(tmp_path / "saved")
    loaded = AnomalyModel.load(tmp_path / "saved", GRID, FeatureSource(CHANNELS), SETTINGS)
    np.testing.assert_array_equal(_z(loaded, aged, UNSEEN[0]), maps[3][UNSEEN[0]])


def test_patterns_are_learnt_without_the_fold_and_follow_the_covariates(store, tmp_path, monkeypatch):
    aged, participants = _aged(store)
    seen = []
    learn = fit.BrainComponents.learn
    monkeypatch.setattr(
        fit.BrainComponents, "learn", lambda voxels, brains, size: seen.append(brains) or learn(voxels, brains, size)
    )
    both = {"scorers": ["intensity"], "smoothing_mm": 0.0, "patterns": 2, "covariates": ["age"]}
    settings = ModelSettings.model_validate({"ensemble": both})
    ensemble = fit_anomaly_model(
        aged, TRAIN, FeatureSource(CHANNELS), settings, tmp_path / "a", seed=0, participants=participants[:20], jobs=1
    )
    assert [len(brains) for brains in seen] == [16] * 5 + [20]
    shared = [sum(bool((brain == other).all()) for brain in seen[0] for other in part) for part in seen[1:]]
    assert shared == [12, 12, 12, 12, 16], "each fold is left out once"
    assert ensemble.confounds.size == 3
    volume = aged.volumes[20].astype(np.float32)
    numbers = ensemble.confounds.values(volume, np.ones(GRID.size, bool), participants[20])
    np.testing.assert_array_equal(numbers[:1], ensemble.confounds.covariates.values(participants[20]))
    nameless = ensemble.confounds.values(volume, np.ones(GRID.size, bool))
    np.testing.assert_array_equal(nameless, [0, *numbers[1:]])


def test_people_are_counted_for_patterns_and_not_their_scans(store, tmp_path):
    keys = [f"sub-{n // 5:02}_ses-{n % 5}" for n in range(20)]  # of four people
    scans = replace(store, keys=(*keys, *KEYS[20:]))
    settings = ModelSettings.model_validate({"ensemble": {"scorers": ["intensity"], "smoothing_mm": 0.0}})
    assert (
        fit_anomaly_model(scans, keys, FeatureSource(CHANNELS), settings, tmp_path, seed=0, jobs=1).confounds.size == 0
    )


@pytest.mark.parametrize("lost", ["confounds.json", "components.safetensors", "intensity/confounds.safetensors"])
def test_a_model_without_what_it_takes_off_is_refused(store, tmp_path, lost):
    settings = ModelSettings.model_validate({"ensemble": {"scorers": ["intensity"], "smoothing_mm": 0.0}})
    fit_anomaly_model(store, TRAIN, FeatureSource(CHANNELS), settings, tmp_path / "scratch", seed=0, jobs=1).save(
        tmp_path / "model"
    )
    (tmp_path / "model" / lost).unlink()
    with pytest.raises(UserError, match="Run the stage fit again"):
        AnomalyModel.load(tmp_path / "model", GRID, FeatureSource(CHANNELS), settings)


def test_without_derived_maps_the_intensity_is_not_read_twice():
    assert [*FeatureSource(CHANNELS).specs(("derived_features", "patches", "intensity"))] == ["patches", "intensity"]
    assert [*FeatureSource(CHANNELS).specs(("derived_features", "patches"))] == ["derived_features", "patches"]


def test_a_reader_of_a_map_that_is_not_there(store, tmp_path):
    settings = ModelSettings.model_validate({"ensemble": {"scorers": ["intensity", "junction"]}})
    with pytest.raises(UserError, match="names junction, and the derived maps are none. Add junction to preproc"):
        fit_anomaly_model(store, TRAIN, FeatureSource(CHANNELS), settings, tmp_path, seed=0)


def test_which_readers_need_an_encoder():
    for name, spec in SCORER_SPECS.items():
        assert EnsembleSettings(scorers=(name,)).needs_encoder == (spec.features == "codes")
    assert not EnsembleSettings(scorers=("junction",)).needs_encoder


@given(p_norm=st.floats(1, 100), one=st.floats(0, 5000), other=st.floats(0, 5000))
def test_combined_surprise_lies_between_the_largest_and_the_sum(p_norm, one, other):
    everywhere = np.ones(GRID.size, bool)
    neg_log10_ps = [np.full(GRID.size, value, np.float32) for value in (one, other)]
    found = combined(neg_log10_ps, everywhere, p_norm)[0]
    assert np.isfinite(found)
    assert max(one, other) * (1 - 1e-5) - 1e-3 <= found <= (one + other) * (1 + 1e-5) + 1e-3
