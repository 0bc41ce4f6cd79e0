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
from voxout.models.anomaly.ensemble import Fusion, fused
from voxout.models.anomaly.fit import fit_fusion
from voxout.models.encoder.checkpoint import Checkpoint, Origin, build_autoencoder
from voxout.models.encoder.patch_shape import Window
from voxout.models.features.feature_store import LatentStore
from voxout.models.features.source import PLANS, Sight
from voxout.models.settings import FusionSettings, ModelSettings
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.intensity.standardisation import IntensityScale
from voxout.preprocessing.patches.volume_store import PatchStore
from voxout.preprocessing.patches.voxel_mask import PatchGrid

SHAPE = (24, 24, 24)
MASK = np.zeros(SHAPE, bool)
MASK[2:-2, 2:-2, 2:-2] = True
GRID = PatchGrid(Grid(SHAPE, np.diag([2.0, 2, 2, 1])), MASK)
CHANNELS = Channels(IntensityScale("percentiles", {"t1w": (0.0, 1.0)}), ())
KEYS = tuple(f"sub-{number:02}" for number in range(30))
TRAIN, UNSEEN = KEYS[:20], KEYS[20:]
SETTINGS = ModelSettings.model_validate(
    {"fusion": {"readers": ["intensity", "patches"], "smoothing_mm": 0.0, "patterns": 0}}
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
    return PatchStore(None, KEYS, ("t1w",), GRID, volumes.astype(np.float16), inside)


@pytest.fixture(scope="module")
def fitted(store, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    calls = []
    fusion = fit_fusion(
        store, TRAIN, Sight(CHANNELS), SETTINGS, scratch, seed=0, jobs=1, progress=lambda *c: calls.append(c)
    )
    return fusion, scratch, calls


def _z(fusion, store, key, change=None):
    volume = store.volumes[store.index([key])[0]].astype(np.float32)
    if change is not None:
        volume[0] += change
    return fusion.read(volume, np.ones(GRID.size, bool), jobs=1).z


def test_the_map_of_an_unseen_control_reads_in_standard_deviations(fitted, store):
    fusion, _, _ = fitted
    z = np.concatenate([_z(fusion, store, key) for key in UNSEEN])
    assert (z > 3.0902).mean() == pytest.approx(0.001, abs=0.0006)
    assert (z > 1.6449).mean() == pytest.approx(0.05, abs=0.012)
    assert np.median(z) == pytest.approx(0, abs=0.1)


def test_it_does_so_on_the_wild_side_as_on_the_calm_one(fitted, store):
    fusion, _, _ = fitted
    left = GRID.locations[:, 0] < SHAPE[0] // 2
    z = np.stack([_z(fusion, store, key) for key in UNSEEN])
    for side in (left, ~left):
        assert (z[:, side] > 2.3263).mean() == pytest.approx(0.01, abs=0.006)


@pytest.mark.parametrize("controls", [3, 4, 8])
def test_few_controls_do_not_make_unseen_brains_look_wild(store, tmp_path, controls):
    """With 3 and 4, some 3 of a thousand voxels did exceed 3.09."""
    fusion = fit_fusion(store, TRAIN[:controls], Sight(CHANNELS), SETTINGS, tmp_path, seed=0, jobs=1)
    z = np.concatenate([_z(fusion, store, key) for key in KEYS[8:]])
    assert 0.0004 < (z > 3.0902).mean() < 0.0017


def test_a_control_scored_by_itself_would_look_too_healthy(fitted, store):
    """Why there is cross-fitting: the same controls, read by readers that were fitted on them."""
    fusion, scratch, _ = fitted
    null = LatentStore.open(scratch / "null", TRAIN, GRID)
    apart = np.concatenate([null.subject(key)[:, 0] for key in TRAIN])
    seen = np.concatenate([_z(fusion, store, key) for key in TRAIN])
    assert (apart > 3.0902).mean() == pytest.approx(0.001, rel=0.1)
    assert (seen > 3.0902).mean() < 0.6 * (apart > 3.0902).mean()


def test_what_does_not_fit_stands_out_of_both_readers_and_most_of_all_of_the_map(fitted, store):
    fusion, _, _ = fitted
    spot = np.zeros(SHAPE, np.float32)
    spot[16:18, 11:13, 11:13] = -0.1
    z = _z(fusion, store, UNSEEN[0], spot)
    inside = GRID.gather(spot) < 0
    assert z[inside].min() > 3
    assert z[inside].mean() > np.quantile(z[~inside], 0.999)


@pytest.mark.parametrize("readers", [["intensity"], ["patches"], ["ocsvm"]])
@pytest.mark.parametrize("cut", [1, 8])
def test_a_control_that_was_cut_short_says_nothing_there_and_hides_nothing_elsewhere(store, tmp_path, readers, cut):
    """Taken for darkness, it would hide the dark lesion of another brain; its edge would raise the tail everywhere."""
    short = replace(store, volumes=store.volumes.copy(), inside=np.array(store.inside))
    short.volumes[:cut, ..., 14:], short.inside[:cut, ..., 14:] = 0, False
    fusion = {"readers": readers, "smoothing_mm": 2.0, "patterns": 3}
    settings = ModelSettings.model_validate({"fusion": fusion, "encoder": {"code_size": 4}})
    sight = Sight(CHANNELS, (_encoder(0, Window("volume", 3)),))
    found = {}
    for name, controls in (("whole", store), ("short", short)):
        fitted = fit_fusion(controls, TRAIN, sight, settings, tmp_path / name, seed=0, jobs=1)
        found[name] = []
        for layer in (7, 13, 17):  # far from the cut, beside it, beyond it
            spot = np.zeros(SHAPE, np.float32)
            spot[14:18, 9:15, layer - 1 : layer + 2] = -0.12
            found[name].append(_z(fitted, store, UNSEEN[0], spot)[GRID.gather(spot) < 0].mean())
        unseen = np.concatenate([_z(fitted, store, key) for key in UNSEEN])
        assert (unseen > 3.0902).mean() < 0.004, name
    assert min(found["whole"]) > 3
    assert (np.array(found["short"]) > 0.75 * np.array(found["whole"])).all(), found

    # And a brain that is cut itself has no map beside the cut, and no sheet of findings.
    volume, brain = store.volumes[store.index([UNSEEN[1]])[0]].astype(np.float32), MASK.copy()
    volume[..., 14:], brain[..., 14:] = 0, False
    reading = fitted.read(volume, GRID.gather(brain), jobs=1)
    reach = 0 if readers == ["intensity"] else 1
    np.testing.assert_array_equal(GRID.scatter(reading.inside), brain & (np.arange(24) < 14 - reach))
    assert (reading.z[reading.inside] > 3.0902).mean() < 0.01 and not reading.z[~reading.inside].any()


def test_where_hardly_a_control_is_left_all_count_as_found(store, tmp_path):
    """Brain in two scans, both of one person, who is left out with both."""
    keys = ("sub-1_ses-1", "sub-1_ses-2", *store.keys[2:])
    without = replace(store, keys=keys, volumes=store.volumes.copy(), inside=np.array(store.inside))
    without.volumes[2:, :, 18:], without.inside[2:, 18:] = 0, False
    fusion = fit_fusion(without, keys[:4], Sight(CHANNELS), SETTINGS, tmp_path, seed=0, jobs=1)
    z = _z(fusion, store, UNSEEN[0])
    assert np.isfinite(z).all()
    kept = GRID.locations[:, 0] < 17
    assert (z[kept] > 3.0902).mean() < 0.003


def test_every_step_is_told(fitted):
    _, _, calls = fitted
    total = 2 * 20 + 2 * (5 + 1)
    assert calls == [(done, total) for done in range(1, total + 1)]


def test_saved_and_loaded_it_draws_the_same_map(fitted, store, tmp_path):
    fusion, _, _ = fitted
    fusion.save(tmp_path)
    loaded = Fusion.load(tmp_path, GRID, Sight(CHANNELS), SETTINGS)
    np.testing.assert_array_equal(_z(loaded, store, UNSEEN[0]), _z(fusion, store, UNSEEN[0]))
    turned = PatchGrid(Grid(SHAPE, np.eye(4)), MASK)
    with pytest.raises(UserError, match="its calibration is of another brain mask. Fit the model again"):
        Fusion.load(tmp_path, turned, Sight(CHANNELS), SETTINGS)


def test_few_controls_are_left_out_one_at_a_time(store, tmp_path):
    fusion = fit_fusion(store, TRAIN[:3], Sight(CHANNELS), SETTINGS, tmp_path, seed=0, jobs=1)
    assert np.isfinite(_z(fusion, store, UNSEEN[0])).all()
    with pytest.raises(UserError, match="2 training controls, expected at least 3: each is scored by detectors"):
        fit_fusion(store, TRAIN[:2], Sight(CHANNELS), SETTINGS, tmp_path, seed=0)


def test_sessions_of_a_person_do_not_vouch_for_each_other(store, tmp_path):
    """Two persons with two sessions each are two controls, not four."""
    keys = ("sub-1_ses-1", "sub-1_ses-2", "sub-2_ses-1", "sub-2_ses-2")
    sessions = replace(store, keys=(*keys, *store.keys[4:]))
    with pytest.raises(UserError, match="2 training controls, expected at least 3"):
        fit_fusion(sessions, keys, Sight(CHANNELS), SETTINGS, tmp_path, seed=0)


def test_with_smoothing_the_readers_and_their_map_stay_calibrated(store, tmp_path):
    settings = ModelSettings.model_validate(
        {"fusion": {"readers": ["intensity", "patches"], "smoothing_mm": 2.0, "patterns": 0}}
    )
    fusion = fit_fusion(store, TRAIN, Sight(CHANNELS), settings, tmp_path / "scratch", seed=0, jobs=1)
    everywhere = np.ones(GRID.size, bool)
    volumes = [store.volumes[row].astype(np.float32) for row in store.index(UNSEEN)]
    for reader in fusion.readers:
        surprise = np.concatenate([reader.surprise(volume, everywhere, jobs=1) for volume in volumes])
        assert (surprise > 2).mean() == pytest.approx(0.01, abs=0.005), reader.name
    z = np.stack([fusion.read(volume, everywhere, jobs=1).z for volume in volumes])
    assert (z > 2.3263).mean() == pytest.approx(0.01, abs=0.004)

    fusion.save(tmp_path / "saved")
    loaded = Fusion.load(tmp_path / "saved", GRID, Sight(CHANNELS), settings)
    np.testing.assert_array_equal(loaded.read(volumes[0], everywhere, jobs=1).z, z[0])


ENSEMBLE = ModelSettings.model_validate(
    {
        "fusion": {"readers": ["mahalanobis", "intensity"], "smoothing_mm": 0.0, "patterns": 0},
        "encoder": {"code_size": 4},
    }
)


SQUARE = Window("axial", 7)


def _encoder(seed, window=SQUARE):
    """Not trained: random convolutions see something, too."""
    torch.manual_seed(seed)
    origin = Origin(("t1w",), (window,), 2.0, GRID.mask_hash, "", seed)
    autoencoder = build_autoencoder(ENSEMBLE, origin)
    autoencoder((torch.rand(64, 1, *[window.size_vox] * len(window.axes)),))  # moves the batch-norm statistics
    return Checkpoint(autoencoder.eval(), {}, ENSEMBLE, origin, 0, ())


def _fitted_on(store, scratch, *seeds):
    sight = Sight(CHANNELS, tuple(_encoder(seed) for seed in seeds))
    return fit_fusion(store, TRAIN, sight, ENSEMBLE, scratch, seed=0, jobs=1), sight


@pytest.fixture(scope="module")
def ensemble(store, tmp_path_factory):
    return _fitted_on(store, tmp_path_factory.mktemp("ensemble"), 0, 1)


def _read(fusion, store, key):
    volume = store.volumes[store.index([key])[0]].astype(np.float32)
    return volume, fusion.read(volume, np.ones(GRID.size, bool), jobs=1)


def test_an_ensembles_map_is_calibrated_too(ensemble, store):
    z = np.concatenate([_read(ensemble[0], store, key)[1].z for key in UNSEEN])
    assert (z > 3.0902).mean() == pytest.approx(0.001, abs=0.0006)
    assert np.median(z) == pytest.approx(0, abs=0.1)


def test_an_ensembles_map_is_the_mean_of_its_members_each_with_the_readers_that_need_none(ensemble, store):
    fusion, _ = ensemble
    assert [reader.name for reader in fusion.readers] == ["mahalanobis", "mahalanobis_2", "intensity"]
    volume, reading = _read(fusion, store, UNSEEN[0])
    first, second, shared = (reader.surprise(volume, np.ones(GRID.size, bool), jobs=1) for reader in fusion.readers)
    each = [np.hypot(own.astype(float), shared) for own in (first, second)]  # power 2, no smoothing
    np.testing.assert_allclose(reading.z, fusion.calibration.z(np.mean(each, axis=0)), atol=1e-5)
    apart = np.abs(fusion.calibration.z(each[0]) - fusion.calibration.z(each[1])) / np.sqrt(2)
    np.testing.assert_allclose(reading.spread, apart, atol=1e-5)
    assert reading.spread.mean() > 0.05


def test_twice_the_same_encoder_is_as_good_as_once(store, tmp_path):
    twice, _ = _fitted_on(store, tmp_path / "twice", 0, 0)
    once, _ = _fitted_on(store, tmp_path / "once", 0)
    _, ours = _read(twice, store, UNSEEN[0])
    _, alone = _read(once, store, UNSEEN[0])
    np.testing.assert_array_equal(ours.z, alone.z)
    assert alone.spread is None and not ours.spread.any()


def test_a_saved_ensemble_draws_the_same_map(ensemble, store, tmp_path):
    fusion, sight = ensemble
    fusion.save(tmp_path)
    loaded = Fusion.load(tmp_path, GRID, sight, ENSEMBLE)
    _, ours = _read(fusion, store, UNSEEN[0])
    _, again = _read(loaded, store, UNSEEN[0])
    np.testing.assert_array_equal(again.z, ours.z)
    np.testing.assert_array_equal(again.spread, ours.spread)


AGED = ModelSettings.model_validate(
    {"fusion": {"readers": ["intensity", "patches"], "smoothing_mm": 0.0, "patterns": 0, "covariates": ["age"]}}
)


def _aged(store):
    """Every decade, from 20 years to 80, takes a little from the intensity of the right half."""
    ages = np.random.default_rng(3).uniform(20, 80, len(KEYS))
    right = np.arange(SHAPE[0])[:, None, None] >= SHAPE[0] // 2
    darker = (0.02 * (ages - 50) / 10)[:, None, None, None] * right * MASK
    volumes = (store.volumes.astype(np.float32) - darker[:, None]).clip(0, 1).astype(np.float16)
    people = [
        SubjectRecord(key.removeprefix("sub-"), "control", {"t1w": Path("t1.nii")}, age=float(age))
        for key, age in zip(KEYS, ages, strict=True)
    ]
    return replace(store, volumes=volumes), people


def test_adjusted_for_age_the_young_and_the_old_are_as_calm_as_the_rest(store, tmp_path):
    aged, people = _aged(store)
    right = GRID.locations[:, 0] >= SHAPE[0] // 2
    plain = fit_fusion(aged, TRAIN, Sight(CHANNELS), SETTINGS, tmp_path / "plain", seed=0, jobs=1)
    adjusted = fit_fusion(aged, TRAIN, Sight(CHANNELS), AGED, tmp_path / "adjusted", seed=0, people=people[:20], jobs=1)
    unseen = list(zip(UNSEEN, people[20:], strict=True))

    def read(fusion, key, person=None, change=0.0):
        volume = aged.volumes[aged.index([key])[0]].astype(np.float32) + change
        return fusion.read(volume, np.ones(GRID.size, bool), person, jobs=1).z

    z = np.concatenate([read(adjusted, key, person) for key, person in unseen])
    assert (z > 3.0902).mean() == pytest.approx(0.001, abs=0.0008)

    def median(fusion, *, extreme, with_person):
        far = [(key, p) for key, p in unseen if (abs(p.age - 50) > 15) == extreme]
        return np.median([read(fusion, key, p if with_person else None)[right] for key, p in far])

    before = median(plain, extreme=True, with_person=False) - median(plain, extreme=False, with_person=False)
    after = median(adjusted, extreme=True, with_person=True) - median(adjusted, extreme=False, with_person=True)
    assert before > 0.8 > 0.4 > abs(after)
    # Of whom nothing is known is read at the mean age, and a model on disk is the model.
    key, person = unseen[0]
    nameless = replace(person, age=None)
    np.testing.assert_array_equal(read(adjusted, key, nameless), read(adjusted, key))
    assert (read(adjusted, key, nameless) != read(adjusted, key, person)).any()
    adjusted.save(tmp_path / "saved")
    loaded = Fusion.load(tmp_path / "saved", GRID, Sight(CHANNELS), AGED)
    np.testing.assert_array_equal(read(loaded, key, person), read(adjusted, key, person))
    with pytest.raises(UserError, match="names age, and age is not given for any of them"):
        nobody = [replace(person, age=None) for person in people[:20]]
        fit_fusion(aged, TRAIN, Sight(CHANNELS), AGED, tmp_path / "none", seed=0, people=nobody, jobs=1)


def test_what_brains_have_in_common_is_told_by_the_brain_itself(store, tmp_path):
    """The same as with age, and nobody tells it; and a spot is still found."""
    aged, people = _aged(store)
    right = GRID.locations[:, 0] >= SHAPE[0] // 2
    fits = {
        patterns: fit_fusion(
            aged,
            TRAIN,
            Sight(CHANNELS),
            SETTINGS.model_copy(update={"fusion": SETTINGS.fusion.model_copy(update={"patterns": patterns})}),
            tmp_path / str(patterns),
            seed=0,
            jobs=1,
        )
        for patterns in (0, 3)
    }
    assert [fusion.nuisances.size for fusion in fits.values()] == [0, 3]
    far = {key: abs(person.age - 50) > 15 for key, person in zip(KEYS, people, strict=True)}
    maps = {n: {key: _z(fusion, aged, key) for key in UNSEEN} for n, fusion in fits.items()}

    def too_high(patterns):
        of = {
            extreme: [maps[patterns][key][right] for key in UNSEEN if far[key] == extreme] for extreme in (True, False)
        }
        return np.median(of[True]) - np.median(of[False])

    assert too_high(0) > 0.8 > 0.4 > abs(too_high(3))
    assert (np.stack([*maps[3].values()]) > 3.0902).mean() == pytest.approx(0.001, abs=0.0008)
    spot = np.zeros(SHAPE, np.float32)
    spot[16:18, 11:13, 11:13] = -0.1
    assert _z(fits[3], aged, UNSEEN[0], spot)[GRID.gather(spot) < 0].min() > 3
    fits[3].save(tmp_path / "saved")
    loaded = Fusion.load(tmp_path / "saved", GRID, Sight(CHANNELS), SETTINGS)
    np.testing.assert_array_equal(_z(loaded, aged, UNSEEN[0]), maps[3][UNSEEN[0]])


def test_patterns_are_learnt_without_the_fold_and_follow_the_covariates(store, tmp_path, monkeypatch):
    aged, people = _aged(store)
    seen = []
    learn = fit.Patterns.learn
    monkeypatch.setattr(
        fit.Patterns, "learn", lambda voxels, brains, size: seen.append(brains) or learn(voxels, brains, size)
    )
    both = {"readers": ["intensity"], "smoothing_mm": 0.0, "patterns": 2, "covariates": ["age"]}
    settings = ModelSettings.model_validate({"fusion": both})
    fusion = fit_fusion(aged, TRAIN, Sight(CHANNELS), settings, tmp_path / "a", seed=0, people=people[:20], jobs=1)
    assert [len(brains) for brains in seen] == [16] * 5 + [20]
    shared = [sum(bool((brain == other).all()) for brain in seen[0] for other in part) for part in seen[1:]]
    assert shared == [12, 12, 12, 12, 16], "each fold is left out once"
    assert fusion.nuisances.size == 3
    volume = aged.volumes[20].astype(np.float32)
    numbers = fusion.nuisances.of(volume, np.ones(GRID.size, bool), people[20])
    np.testing.assert_array_equal(numbers[:1], fusion.nuisances.covariates.of(people[20]))
    nameless = fusion.nuisances.of(volume, np.ones(GRID.size, bool))
    np.testing.assert_array_equal(nameless, [0, *numbers[1:]])


def test_people_are_counted_for_patterns_and_not_their_scans(store, tmp_path):
    keys = [f"sub-{n // 5:02}_ses-{n % 5}" for n in range(20)]  # of four people
    scans = replace(store, keys=(*keys, *KEYS[20:]))
    settings = ModelSettings.model_validate({"fusion": {"readers": ["intensity"], "smoothing_mm": 0.0}})
    assert fit_fusion(scans, keys, Sight(CHANNELS), settings, tmp_path, seed=0, jobs=1).nuisances.size == 0


@pytest.mark.parametrize("lost", ["nuisances.json", "patterns.safetensors", "intensity/nuisances.safetensors"])
def test_a_model_without_what_it_takes_off_is_refused(store, tmp_path, lost):
    settings = ModelSettings.model_validate({"fusion": {"readers": ["intensity"], "smoothing_mm": 0.0}})
    fit_fusion(store, TRAIN, Sight(CHANNELS), settings, tmp_path / "scratch", seed=0, jobs=1).save(tmp_path / "model")
    (tmp_path / "model" / lost).unlink()
    with pytest.raises(UserError, match="Run the stage fit again"):
        Fusion.load(tmp_path / "model", GRID, Sight(CHANNELS), settings)


def test_without_derived_maps_the_intensity_is_not_read_twice():
    assert [*Sight(CHANNELS).plans(("hand_made", "patches", "intensity"))] == ["patches", "intensity"]
    assert [*Sight(CHANNELS).plans(("hand_made", "patches"))] == ["hand_made", "patches"]


def test_a_reader_of_a_map_that_is_not_there(store, tmp_path):
    settings = ModelSettings.model_validate({"fusion": {"readers": ["intensity", "junction"]}})
    with pytest.raises(UserError, match="names junction, and the derived maps are none. Add junction to preproc"):
        fit_fusion(store, TRAIN, Sight(CHANNELS), settings, tmp_path, seed=0)


def test_which_readers_need_an_encoder():
    for name, plan in PLANS.items():
        assert FusionSettings(readers=(name,)).needs_encoder == (plan.features == "codes")
    assert not FusionSettings(readers=("junction",)).needs_encoder


@given(power=st.floats(1, 100), one=st.floats(0, 5000), other=st.floats(0, 5000))
def test_combined_surprise_lies_between_the_largest_and_the_sum(power, one, other):
    everywhere = np.ones(GRID.size, bool)
    surprises = [np.full(GRID.size, value, np.float32) for value in (one, other)]
    found = fused(surprises, everywhere, power)[0]
    assert np.isfinite(found)
    assert max(one, other) * (1 - 1e-5) - 1e-3 <= found <= (one + other) * (1 + 1e-5) + 1e-3
