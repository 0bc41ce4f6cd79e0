"""Phantoms: the ground truth agrees with the images, and the result is reproducible for a seed."""

import csv
import itertools

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from voxout.data_manifests.cohort.manifest import read_manifest
from voxout.data_manifests.images.volume import read_grid, read_mask, read_volume
from voxout.data_manifests.synthetic.phantom_fields import random_warp
from voxout.data_manifests.synthetic.phantoms import make_cohort, make_head, small_asymmetric_phantom, small_cohort


@pytest.fixture(scope="module")
def healthy():
    return make_head(7, spacing_mm=2.0)


@pytest.fixture(scope="module")
def patient():
    return make_head(7, spacing_mm=2.0, lesions=4)


@pytest.fixture(scope="module")
def brains():
    return [make_head(seed, spacing_mm=4.0, skull=False) for seed in range(12)]


@pytest.fixture(scope="module")
def coarse():
    return make_head(3, spacing_mm=4.0, lesions=2)


def _median(image, where):
    return float(np.median(image.voxels[where]))


def _own_mm(grid):
    index = np.indices(grid.size_vox).reshape(3, -1)
    return (grid.affine[:3, :3] @ index + grid.affine[:3, 3:]).reshape(3, *grid.size_vox)


def _contrast(phantom, modality):
    image = phantom.images[modality]
    return _median(image, phantom.white.voxels > 0.95) - _median(image, phantom.grey.voxels > 0.95)


# -- reproducibility ------------------------------------------------------------------------------------------------
def test_same_seed_gives_identical_images(coarse):
    again = make_head(3, spacing_mm=4.0, lesions=2)
    for modality, image in coarse.images.items():
        assert np.array_equal(image.voxels, again.images[modality].voxels)
    assert np.array_equal(coarse.brain_mask.affine, again.brain_mask.affine)
    assert np.array_equal(coarse.lesion_mask.voxels, again.lesion_mask.voxels)
    assert coarse.lesions == again.lesions


def test_images_do_not_depend_on_other_modalities(coarse):
    alone = make_head(3, spacing_mm=4.0, lesions=2, modalities=("flair",))
    assert list(alone.images) == ["flair"]
    assert np.array_equal(coarse.images["flair"].voxels, alone.images["flair"].voxels)


def test_heads_differ(brains):
    masks = [brain.brain_mask.voxels.sum() for brain in brains]
    assert len(set(masks)) > 8
    assert len({brain.brain_mask.grid.orientation for brain in brains}) > 2
    assert len({brain.age for brain in brains}) == len(brains)


# -- anatomy ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(5))
def test_warp_has_no_folds(seed):
    warp = random_warp(np.random.default_rng(seed))
    rng = np.random.default_rng(100 + seed)
    points = rng.uniform(-110, 110, (3, 40000)).astype(np.float64)
    step = 0.5
    columns = []
    for axis in range(3):
        ahead, behind = points.copy(), points.copy()
        ahead[axis] += step
        behind[axis] -= step
        columns.append((warp(ahead) - warp(behind)) / (2 * step))
    jacobian = np.linalg.det(np.stack(columns).transpose(2, 1, 0))
    assert jacobian.min() > 0.05
    assert 0.8 < jacobian.mean() * 0.93**3 < 1.25


def test_brain_volume_is_realistic(brains):
    for brain in brains:
        volume_ml = brain.brain_mask.voxels.sum() * brain.brain_mask.grid.voxel_volume_mm3 / 1000
        assert 1000 < volume_ml < 1800


def test_brain_mask_agrees_with_the_tissues(healthy):
    total = healthy.grey.voxels + healthy.white.voxels + healthy.fluid.voxels
    mask = healthy.brain_mask.voxels
    assert np.allclose(total[mask], 1, atol=1e-5)
    # Outside the mask, tissue remains only in a thin shell of partial-volume voxels.
    assert not total[ndimage.distance_transform_edt(~mask) > 3].any()
    _, parts = ndimage.label(mask)
    assert parts < 5


def test_older_brains_have_more_fluid():
    old_and_young = sorted(
        (make_head(s, spacing_mm=6.0, skull=False, modalities=("t1w",)) for s in range(24)), key=lambda p: p.age
    )
    share = [p.fluid.voxels[p.brain_mask.voxels].mean() for p in old_and_young]
    assert np.mean(share[12:]) > 1.1 * np.mean(share[:12])


def test_left_occipital_horn_is_wider(brains):
    """Checked in the native space of each brain: left is -x."""
    left, right = [], []
    for brain in brains:
        place = brain.warp(_own_mm(brain.brain_mask.grid))
        for side, volumes in ((-1, left), (1, right)):
            near = (np.abs(place - np.reshape([26 * side, -60, 8], (3, 1, 1, 1))) < 12).all(axis=0)
            volumes.append(brain.fluid.voxels[near].sum())
    assert np.mean(left) > 1.25 * np.mean(right)


def test_capsule_marks_the_right_temple(healthy):
    t1w = healthy.images["t1w"]
    own, place = _own_mm(t1w.grid), healthy.warp(_own_mm(t1w.grid))
    temple = (np.abs(place[1] - 12) < 6) & (np.abs(place[2] - 8) < 6)
    brain_x = own[0][healthy.brain_mask.voxels]
    # Beyond the scalp on both sides: a flipped image would have the capsule on the left.
    side = [temple & (np.sign(place[0]) == s) & (np.abs(place[0]) > 84) for s in (-1, 1)]
    bright = [float((t1w.voxels[s] > healthy.white_intensity["t1w"]).sum()) for s in side]
    assert bright[1] > 20 * max(bright[0], 1)
    assert own[0][side[1]].mean() > brain_x.max() > brain_x.min() > own[0][side[0]].mean()


# -- the scan --------------------------------------------------------------------------------------------------------
def test_grid_is_oblique_and_not_ras(healthy, brains):
    for phantom in [healthy, *brains]:
        grid = phantom.brain_mask.grid
        assert grid.orientation != "RAS"
        cosines = np.abs(grid.affine[:3, :3] / grid.spacing_mm).max(axis=0)
        assert (cosines > np.cos(np.deg2rad(8))).all()
        assert (cosines < 1 - 1e-6).any()
    assert np.allclose(healthy.brain_mask.grid.spacing_mm, 2.0)


def test_tissue_contrasts(healthy):
    fluid, grey, white = (
        [_median(healthy.images[m], tissue.voxels > 0.9) for m in ("t1w", "flair")]
        for tissue in (healthy.fluid, healthy.grey, healthy.white)
    )
    assert fluid[0] < 0.6 * grey[0] < grey[0] < 0.85 * white[0]
    assert fluid[1] < 0.5 * white[1] < white[1] < 0.92 * grey[1]


def test_skull_is_dark_and_scalp_bright(healthy):
    t1w = healthy.images["t1w"]
    above = healthy.warp(_own_mm(t1w.grid))[2] > 40
    away_mm = ndimage.distance_transform_edt(~healthy.brain_mask.voxels, sampling=2.0)
    white = healthy.white_intensity["t1w"]
    assert _median(t1w, above & (away_mm > 1) & (away_mm < 4)) < 0.4 * white
    # The depth of the scalp varies; its brightest 10 % are fat.
    assert np.percentile(t1w.voxels[above & (away_mm > 7) & (away_mm < 14)], 90) > white
    assert np.median(t1w.voxels[above & (away_mm > 25)]) < 0.1 * white


def test_noise_is_rician_with_the_given_sigma(healthy):
    for modality, image in healthy.images.items():
        air = ndimage.distance_transform_edt(~healthy.brain_mask.voxels, sampling=2.0) > 40
        air &= healthy.warp(_own_mm(image.grid))[2] > 20
        background = image.voxels[air]
        sigma = healthy.noise_sigma[modality]
        assert np.mean(background) == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.02)
        assert np.std(background) == pytest.approx(sigma * np.sqrt(2 - np.pi / 2), rel=0.02)


def test_values_are_integers_that_fit_16_bits(healthy):
    for image in healthy.images.values():
        assert image.voxels.min() >= 0
        assert image.voxels.max() < 2**15
        assert np.array_equal(image.voxels, np.rint(image.voxels))


def test_stripped_brain_is_zero_outside_its_mask(brains):
    for brain in brains:
        for image in brain.images.values():
            assert not image.voxels[~brain.brain_mask.voxels].any()
            assert (image.voxels[brain.brain_mask.voxels] > 0).mean() > 0.999


# -- lesions ---------------------------------------------------------------------------------------------------------
def test_lesions_leave_the_rest_unchanged(healthy, patient):
    far = ndimage.distance_transform_edt(~patient.lesion_mask.voxels, sampling=2.0) > 12
    for modality, image in patient.images.items():
        assert np.array_equal(image.voxels[far], healthy.images[modality].voxels[far])
        assert not np.array_equal(image.voxels, healthy.images[modality].voxels)
    assert healthy.lesion_mask is None


def test_lesion_volumes_and_places(patient):
    labels, count = ndimage.label(patient.lesion_mask.voxels, structure=np.ones((3, 3, 3)))
    assert count == len(patient.lesions) == 4
    assert {lesion.place for lesion in patient.lesions} == {"border", "deep"}
    volumes = sorted(np.bincount(labels.ravel())[1:] * 8 / 1000)
    assert volumes == pytest.approx(sorted(lesion.volume_ml for lesion in patient.lesions))
    assert all(0.2 < volume < 4 for volume in volumes)
    assert not (patient.lesion_mask.voxels & ~patient.brain_mask.voxels).any()
    own = _own_mm(patient.lesion_mask.grid)
    for lesion in patient.lesions:
        apart = np.linalg.norm(own - np.reshape(lesion.centre_mm, (3, 1, 1, 1)), axis=0)
        assert apart[patient.lesion_mask.voxels].min() < 6
        around = (apart < 4) & patient.brain_mask.voxels
        if lesion.place == "deep":
            assert patient.white.voxels[around].mean() > 0.7
        else:
            assert 0.15 < patient.white.voxels[around].mean() < 0.85


def test_lesions_have_the_requested_contrast(healthy, patient):
    """The same head with and without lesions and with the same noise differs only in the lesions."""
    labels, _ = ndimage.label(patient.lesion_mask.voxels, structure=np.ones((3, 3, 3)))
    own = _own_mm(patient.lesion_mask.grid)
    for modality, multiple in (("t1w", -1.0), ("flair", -2.0)):
        # White - grey is positive on T1w (dark lesions) and negative on FLAIR (bright lesions).
        full = multiple * _contrast(healthy, modality)
        change = patient.images[modality].voxels - healthy.images[modality].voxels
        for lesion in patient.lesions:
            apart = np.linalg.norm(own - np.reshape(lesion.centre_mm, (3, 1, 1, 1)), axis=0)
            label = labels.flat[np.where(labels > 0, apart, np.inf).argmin()]
            inside = change[labels == label] / (lesion.strength * full)
            # The bias field changes intensities by up to 25 %. At the soft edge, half of the change is reached.
            assert 0.75 < np.percentile(inside, 95) < 1.3
            assert 0.5 < np.mean(inside) < 1.15
            assert inside.min() > 0.3


def test_flair_lesions_are_brighter_than_white_matter(patient):
    white = patient.images["flair"].voxels[(patient.white.voxels > 0.9) & ~patient.lesion_mask.voxels]
    assert np.median(patient.images["flair"].voxels[patient.lesion_mask.voxels]) > np.percentile(white, 95)


# -- the small phantom -----------------------------------------------------------------------------------------------
def test_no_flip_or_swap_maps_the_small_phantom_onto_itself():
    phantom = small_asymmetric_phantom((24, 24, 24), (2.0, 2.0, 2.0))
    assert phantom.grid.orientation == "RAS"
    assert np.allclose(phantom.affine @ [11.5, 11.5, 11.5, 1], [0, 0, 0, 1])
    voxels = phantom.voxels
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            turned = voxels.transpose(axes)[:: flips[0], :: flips[1], :: flips[2]]
            same = axes == (0, 1, 2) and flips == (1, 1, 1)
            assert (np.corrcoef(turned.ravel(), voxels.ravel())[0, 1] > 0.95) == same


def test_small_phantom_keeps_size_and_spacing():
    phantom = small_asymmetric_phantom((20, 30, 25), (1.0, 2.0, 3.0))
    assert phantom.voxels.shape == (20, 30, 25)
    assert np.allclose(phantom.grid.spacing_mm, (1, 2, 3))


# -- cohorts ---------------------------------------------------------------------------------------------------------
def test_cohort_of_heads(tmp_path):
    calls = []
    path = make_cohort(
        tmp_path / "made",
        controls=2,
        held_out=1,
        patients=1,
        spacing_mm=5.0,
        seed=5,
        modalities=("t1w", "flair"),
        progress=lambda done, total, key: calls.append((done, total, key)),
    )
    assert path == tmp_path / "made" / "cohort.csv"
    manifest = read_manifest(path)
    keys = ["sub-control001", "sub-control002", "sub-heldout001", "sub-patient001"]
    assert [record.key for record in manifest] == keys
    assert [record.split for record in manifest.controls] == ["train", "train", "held_out"]
    assert calls == [(n, 4, key) for n, key in enumerate(keys, start=1)]
    reference = path.parent / "derivatives" / "reference"
    with open(reference / "lesions.tsv", newline="") as file:
        lesions = list(csv.DictReader(file, delimiter="\t"))
    for record in manifest:
        assert record.brain_mask is None
        assert set(record.images) == {"t1w", "flair"}
        brain = read_mask(reference / record.key / "anat" / f"{record.key}_desc-brain_mask.nii.gz")
        for image in record.images.values():
            assert nib.load(image).get_data_dtype() == np.int16
            assert read_volume(image).grid.same_as(brain.grid)
        if record.group == "patient":
            assert record.lesion_mask is not None
            volume_ml = read_mask(record.lesion_mask).voxels.sum() * 0.125
            own = [float(row["volume_ml"]) for row in lesions if row["participant_id"] == record.key]
            assert 2 <= len(own) <= 4
            assert volume_ml == pytest.approx(sum(own), abs=0.01)
        else:
            assert record.lesion_mask is None


def test_larger_cohort_contains_the_smaller_one(tmp_path):
    small = read_manifest(small_cohort(tmp_path / "small", controls=1, patients=1, seed=2))
    large = read_manifest(small_cohort(tmp_path / "large", controls=3, held_out=1, patients=1, seed=2))
    other = read_manifest(small_cohort(tmp_path / "other", controls=1, patients=0, seed=3))
    for record in small:
        twin = large[record.key]
        assert read_grid(record.images["t1w"]).same_as(read_grid(twin.images["t1w"]))
        # The bytes must be equal, and not only the voxels, because files are hashed.
        assert record.images["t1w"].read_bytes() == twin.images["t1w"].read_bytes()
    key = "sub-control001"
    assert small[key].images["t1w"].read_bytes() != other[key].images["t1w"].read_bytes()


def test_small_cohort_lists_its_brain_masks(tmp_path):
    manifest = read_manifest(small_cohort(tmp_path, controls=2, held_out=1, patients=1))
    for record in manifest:
        assert record.brain_mask is not None
        scan = read_volume(record.images["t1w"])
        assert not scan.voxels[~read_mask(record.brain_mask).voxels].any()
        assert max(scan.grid.size_vox) < 64


# -- brain extraction -----------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_brain_extraction_of_a_phantom(healthy):
    deepbet = pytest.importorskip("deepbet")
    t1w = healthy.images["t1w"]
    _, mask, _ = deepbet.BrainExtraction(no_gpu=True).run(nib.Nifti1Image(t1w.voxels, t1w.affine))
    found, true = np.asarray(mask.dataobj).reshape(t1w.voxels.shape) > 0.5, healthy.brain_mask.voxels
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.95
