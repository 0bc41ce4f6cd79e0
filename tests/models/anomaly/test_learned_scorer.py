"""The learned scorer, fitted and calibrated with the others on small simulated brains."""

import numpy as np
import pytest
from scipy import ndimage
from voxout.data_manifests.errors import UserError
from voxout.models.anomaly.ensemble import Ensemble
from voxout.models.anomaly.fit import fit_ensemble
from voxout.models.features.source import FeatureSource
from voxout.models.learned.scorer import LearnedScorer
from voxout.models.settings import ModelSettings
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.intensity.standardisation import IntensityScale
from voxout.preprocessing.patches.volume_store import VolumeStore
from voxout.preprocessing.patches.voxel_mask import VoxelMask
from voxout.preprocessing.registration.template import load_template

TEMPLATE = load_template(6.0)
MASK = VoxelMask(TEMPLATE.grid, TEMPLATE.brain_mask.voxels)
BRAIN = np.ones(MASK.size, bool)
CHANNELS = Channels(IntensityScale("percentiles", {"t1w": (0.0, 1.0)}), ("extension",))
KEYS = tuple(f"sub-{number:02}" for number in range(30))
TRAIN, UNSEEN = KEYS[:22], KEYS[22:]
LEARNED = {"copies": 1, "steps": 200}


def settings_of(*scorers, **learned):
    ensemble = {"scorers": scorers, "brain_components": 2}
    return ModelSettings.model_validate({"ensemble": ensemble, "learned": {**LEARNED, **learned}})


@pytest.fixture(scope="module")
def store():
    """The template plus smooth noise for each subject."""
    random = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(random.normal(size=(len(KEYS), *MASK.grid.size_vox)), [0, 0.7, 0.7, 0.7])
    images = np.clip(TEMPLATE.t1w.voxels + 0.04 * noise / noise.std(), 0, 1) * MASK.brain_mask
    volumes = [CHANNELS.with_derived([image.astype(np.float32)], TEMPLATE.brain_mask) for image in images]
    inside = np.broadcast_to(MASK.brain_mask, (len(KEYS), *MASK.grid.size_vox))
    return VolumeStore(None, KEYS, CHANNELS.names, MASK, np.stack(volumes).astype(np.float16), inside)


@pytest.fixture(scope="module")
def fitted(store, tmp_path_factory):
    calls = []
    ensemble = fit_ensemble(
        store,
        TRAIN,
        FeatureSource(CHANNELS),
        settings_of("intensity", "learned"),
        tmp_path_factory.mktemp("scratch"),
        seed=0,
        jobs=2,
        progress=lambda *call: calls.append(call),
    )
    return ensemble, calls


def z_of(ensemble, store, key, edit=None):
    image = store.volumes[store.index([key])[0], 0].astype(np.float32)
    if edit is not None:
        image = edit(image)
    return ensemble.predict(CHANNELS.with_derived([image], TEMPLATE.brain_mask), BRAIN, jobs=1).z


def learned_of(ensemble):
    return next(scorer for scorer in ensemble.scorers if scorer.name == "learned")


def test_maps_of_unseen_controls_are_calibrated(fitted, store):
    ensemble, learned = fitted[0], learned_of(fitted[0])
    channels = [store.volumes[row].astype(np.float32) for row in store.index(UNSEEN)]
    own = np.concatenate([learned.neg_log10_p(c, BRAIN, ensemble.confounds.values(c, BRAIN)) for c in channels])
    # The mean of the networks varies less than the single networks of the null: fewer voxels than 0.01.
    assert 0.001 < (own > 2).mean() < 0.016
    z = np.concatenate([z_of(fitted[0], store, key) for key in UNSEEN])
    assert (z > 2.3263).mean() == pytest.approx(0.01, abs=0.006)


def test_a_darker_patch_is_found(fitted, store):
    spot = np.zeros(MASK.grid.size_vox, bool)
    spot[18:21, 16:19, 18:21] = True
    assert (spot <= MASK.brain_mask).all()
    z = z_of(fitted[0], store, UNSEEN[0], lambda image: np.where(spot, image - 0.15, image))
    assert z[MASK.transform(spot)].mean() > 3


def test_progress_is_reported_at_every_step(fitted):
    # Features of two scorers, fits of `intensity`, edits and networks; of 22 controls and their mirrored copies.
    total = 2 * 44 + (5 + 1) + (44 + 5)
    assert fitted[1] == [(done, total) for done in range(1, total + 1)]


def test_a_loaded_model_predicts_the_same_map(fitted, store, tmp_path):
    settings = settings_of("intensity", "learned")
    fitted[0].save(tmp_path)
    loaded = Ensemble.load(tmp_path, MASK, FeatureSource(CHANNELS), settings)
    np.testing.assert_array_equal(z_of(loaded, store, UNSEEN[0]), z_of(fitted[0], store, UNSEEN[0]))
    with pytest.raises(UserError, match="a whitening of 2 channels does not match 3 channels"):
        LearnedScorer.load(tmp_path / "learned", MASK, 3)
    path = tmp_path / "learned" / "networks.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"holds no networks of the learned scorer .* Run the stage fit again"):
        Ensemble.load(tmp_path, MASK, FeatureSource(CHANNELS), settings)


@pytest.mark.slow
def test_the_map_does_not_depend_on_the_number_of_threads(store, tmp_path):
    maps = []
    for jobs in (1, 2):
        ensemble = fit_ensemble(
            store,
            TRAIN,
            FeatureSource(CHANNELS),
            settings_of("learned", steps=3),
            tmp_path / str(jobs),
            seed=0,
            jobs=jobs,
        )
        maps.append(z_of(ensemble, store, UNSEEN[0]))
    np.testing.assert_array_equal(*maps)


def test_left_out_with_few_controls(store, tmp_path):
    settings = settings_of("intensity", "learned")
    ensemble = fit_ensemble(store, TRAIN[:19], FeatureSource(CHANNELS), settings, tmp_path / "s", seed=0, jobs=1)
    assert [scorer.name for scorer in ensemble.scorers] == ["intensity"]
    ensemble.save(tmp_path / "model")
    loaded = Ensemble.load(tmp_path / "model", MASK, FeatureSource(CHANNELS), settings)
    np.testing.assert_array_equal(z_of(loaded, store, UNSEEN[0]), z_of(ensemble, store, UNSEEN[0]))
    with pytest.raises(UserError, match="19 training controls, expected at least 20 for the scorer `learned`"):
        fit_ensemble(store, TRAIN[:19], FeatureSource(CHANNELS), settings_of("learned"), tmp_path, seed=0)
