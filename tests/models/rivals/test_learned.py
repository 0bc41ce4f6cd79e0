"""voxout's scorer `learned` as a method of the comparison, on the template with noise."""

import numpy as np
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from voxout.models.rivals.learned import Learned
from voxout.models.rivals.rival import checked_scores
from voxout.models.rivals.scans import Controls
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.intensity.standardisation import IntensityScale
from voxout.preprocessing.patches.volume_store import VolumeStore
from voxout.preprocessing.patches.voxel_mask import VoxelMask
from voxout.preprocessing.registration.template import load_template

TEMPLATE = load_template(6.0)
MASK = VoxelMask(TEMPLATE.grid, TEMPLATE.brain_mask.voxels)
CHANNELS = Channels(IntensityScale("percentiles", {"t1w": (0.0, 1.0)}), ("extension",))
COUNT = 21


def _brains() -> np.ndarray:
    random = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(random.normal(size=(COUNT, *MASK.grid.size_vox)), [0, 0.7, 0.7, 0.7])
    images = TEMPLATE.t1w.voxels + 0.04 * noise / noise.std()
    return (np.clip(images, 0, 1) * MASK.brain_mask).astype(np.float32)


def test_it_finds_a_dark_ball_that_no_control_has(tmp_path):
    images = _brains()
    channels = [CHANNELS.with_derived([image], TEMPLATE.brain_mask) for image in images]
    keys = tuple(f"sub-{number:02}" for number in range(COUNT))
    inside = np.broadcast_to(MASK.brain_mask, (COUNT, *MASK.grid.size_vox))
    store = VolumeStore(tmp_path, keys, CHANNELS.names, MASK, np.stack(channels).astype(np.float16), inside)
    rival = Learned(copies=1, steps=100)
    own = Controls(store, CHANNELS, keys[:-1], tmp_path, jobs=1)
    rival.fit(own)
    centre = np.array(MASK.locations[len(MASK.locations) // 2])
    ball = (np.linalg.norm(np.indices(MASK.grid.size_vox).T - centre, axis=-1).T <= 2) & MASK.brain_mask
    edited = CHANNELS.with_derived([np.where(ball, 0.5 * images[-1], images[-1])], TEMPLATE.brain_mask)
    subject = own.as_scan("sub-patient", edited, MASK.brain_mask)
    scores = checked_scores("learned", subject, rival.score(subject))
    assert roc_auc_score(ball[MASK.brain_mask], scores[MASK.brain_mask]) > 0.9
    # Nothing is left of the features but what the fit holds.
    assert list(tmp_path.iterdir()) == []
