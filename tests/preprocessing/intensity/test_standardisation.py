"""Properties of the intensity standardisation methods."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voxout.data_manifests.errors import SubjectError
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume, write_volume
from voxout.preprocessing.intensity.percentile_scaling import normalise
from voxout.preprocessing.intensity.standardisation import IntensityScale, landmarks
from voxout.preprocessing.prepared_images import PreparedImages
from voxout.preprocessing.registration.template import load_template
from voxout.preprocessing.settings import IntensityMethod

METHODS: tuple[IntensityMethod, ...] = get_args(IntensityMethod)
TEMPLATE = load_template(5.0)
GRID, BRAIN = TEMPLATE.grid, TEMPLATE.brain_mask


def scanned(number: int, bend: float = 1.0, gain: float = 100.0, offset: float = 20.0) -> Volume:
    """A simulated scan: the template with noise, a nonlinear contrast, a gain and an offset."""
    noise = np.random.default_rng(number).normal(0, 0.03, GRID.size_vox)
    head = np.clip(TEMPLATE.t1w.voxels + noise, 0.01, None) ** bend
    return BRAIN.with_voxels((gain * head + offset).astype(np.float32))


def prepared(number: int, **options: float) -> Volume:
    return normalise(scanned(number, **options), BRAIN)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Write prepared images and return their `PreparedImages`."""
    folder = tmp_path_factory.mktemp("prepared")

    def store(key: str, *images: Volume, mask: Volume = BRAIN) -> PreparedImages:
        paths = [write_volume(folder / f"{key}-{n}.nii.gz", image) for n, image in enumerate(images)]
        names = dict(zip(("t1w", "flair"), paths, strict=False))
        return PreparedImages(key, names, write_volume(folder / f"{key}-mask.nii.gz", mask))

    return store


@pytest.fixture(scope="module")
def controls(stored):
    return [stored(f"sub-c{n}", prepared(n, bend=0.9 + 0.05 * n), prepared(n + 50, bend=2.0)) for n in range(5)]


@pytest.fixture(scope="module")
def scales(controls) -> dict[str, IntensityScale]:
    return {method: IntensityScale.learn(method, ("t1w", "flair"), controls, GRID) for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_monotonic_and_in_0_to_1(method, scales):
    image = prepared(7, bend=1.7)
    mapped = scales[method].standardise(image, BRAIN, "t1w").voxels
    assert mapped.dtype == np.float32 and np.isfinite(mapped).all()
    assert mapped.min() >= 0 and mapped.max() <= 1
    assert (mapped[~BRAIN.voxels] == 0).all()
    order = np.argsort(image.voxels[BRAIN.voxels])
    assert (np.diff(mapped[BRAIN.voxels][order]) >= 0).all()
    assert np.unique(mapped).size > 0.9 * np.unique(image.voxels).size, "distinct intensities stay distinct"


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=20, deadline=None)
@given(gain=st.floats(1e-3, 1e4), offset=st.floats(0, 1e3))
def test_invariance_to_gain_and_offset(method, gain, offset, scales):
    plain = scales[method].standardise(prepared(7), BRAIN, "t1w").voxels
    moved = scanned(7).voxels.astype(np.float64) * gain + offset * gain
    image = normalise(BRAIN.with_voxels(moved), BRAIN)
    # The mode is computed from a histogram: values at the edge of a bin may move to the next bin.
    tolerance = 0.01 if method == "white_matter" else 1e-4
    again = scales[method].standardise(image, BRAIN, "t1w").voxels
    np.testing.assert_allclose(again, plain, rtol=0, atol=tolerance)


def test_nyul_keeps_an_image_with_the_standard_landmarks(scales):
    standard = np.array(scales["nyul"].standard["t1w"])
    assert (standard[0], standard[-1]) == (0, 1) and len(standard) == 11
    # A brain whose deciles are the standard positions: equally many voxels between neighbouring deciles.
    values = np.interp(np.linspace(0, 100, BRAIN.voxels.sum() + 2)[1:-1], np.arange(0, 101, 10), standard)
    voxels = np.zeros(GRID.size_vox, np.float32)
    voxels[BRAIN.voxels] = values
    image = BRAIN.with_voxels(voxels)
    assert landmarks("nyul", image) == pytest.approx(standard, abs=1e-4)
    np.testing.assert_allclose(scales["nyul"].standardise(image, BRAIN, "t1w").voxels, voxels, rtol=0, atol=1e-3)


@pytest.mark.parametrize("bend", [0.6, 2.5])
def test_nyul_maps_landmarks_to_the_standard(bend, scales):
    image = prepared(9, bend=bend)
    mapped = scales["nyul"].standardise(image, BRAIN, "t1w")
    assert landmarks("nyul", mapped) == pytest.approx(np.array(scales["nyul"].standard["t1w"]), abs=1e-3)
    assert landmarks("nyul", image) != pytest.approx(np.array(scales["nyul"].standard["t1w"]), abs=1e-2)


def test_nyul_of_a_small_image():
    """Deciles at 0.05, 0.10, ..., 0.45 map to 0.1, 0.2, ..., 0.9: intensities below 0.45 are doubled."""
    scale = IntensityScale("nyul", {"t1w": tuple(np.linspace(0, 1, 11))})
    grid = Grid((2002, 1, 1), np.eye(4))
    values = np.concatenate([[0.0], np.linspace(0, 0.5, 2001)[1:], [1.0]])
    inside = Volume(np.ones(grid.size_vox, bool), grid)
    image = Volume(values.reshape(grid.size_vox).astype(np.float32), grid)
    mapped = scale.standardise(image, inside, "t1w").voxels.ravel()
    assert mapped[values == 0.2] == pytest.approx(0.4, abs=2e-3)
    assert mapped[values == 0.4] == pytest.approx(0.8, abs=2e-3)
    assert mapped[-1] == 1 and mapped[0] == 0


def test_white_matter_mode(scales):
    random = np.random.default_rng(0)
    values = np.where(TEMPLATE.white.voxels > 0.5, 0.6, 0.3) + random.normal(0, 0.01, GRID.size_vox)
    image = BRAIN.with_voxels(np.where(BRAIN.voxels, values, 0).astype(np.float32))
    # White matter is at 0.6; 1.5 times 0.6 maps to 1, so white matter maps to two thirds.
    mapped = scales["white_matter"].standardise(image, BRAIN, "t1w").voxels
    assert np.median(mapped[TEMPLATE.white.voxels > 0.9]) == pytest.approx(2 / 3, abs=0.01)


def test_z_score_of_uniform_intensities(scales):
    """Intensities uniform from 0.2 to 0.8: median 0.5, median absolute deviation 0.15."""
    voxels = np.zeros(GRID.size_vox, np.float32)
    voxels[BRAIN.voxels] = np.linspace(0.2, 0.8, BRAIN.voxels.sum())
    mapped = scales["z_score"].standardise(BRAIN.with_voxels(voxels), BRAIN, "t1w").voxels[BRAIN.voxels]
    z = (mapped - 0.5) * 10
    assert z[[0, -1]] == pytest.approx([-0.3 / (1.4826 * 0.15), 0.3 / (1.4826 * 0.15)], abs=1e-3)


def test_nyul_standard_is_the_mean_of_the_controls(controls, scales):
    own = [landmarks("nyul", control.read("flair", GRID)) for control in controls]
    assert scales["nyul"].standard["flair"] == pytest.approx(np.mean(own, axis=0), abs=1e-12)
    assert scales["nyul"].standard["flair"] != pytest.approx(scales["nyul"].standard["t1w"], abs=0.05)


def test_read_returns_ordered_channels_inside_the_brain(scales, stored):
    half = BRAIN.voxels.copy()
    half[: GRID.size_vox[0] // 2] = False
    t1w, flair = prepared(3), prepared(4, bend=2.0)
    channels = scales["z_score"].read(stored("sub-half", t1w, flair, mask=BRAIN.with_voxels(half)), GRID)
    assert channels.shape == (2, *GRID.size_vox) and (channels[:, ~half] == 0).all()
    assert np.array_equal(channels[1][half], scales["z_score"].standardise(flair, BRAIN, "flair").voxels[half])


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25, deadline=None)
@given(levels=st.integers(2, 12), dark=st.floats(0, 0.95), seed=st.integers(0, 99))
def test_few_grey_values_stay_finite_and_ordered(method, levels, dark, seed, scales):
    random = np.random.default_rng(seed)
    values = random.integers(1, levels + 1, GRID.size_vox) / levels
    values = np.where(random.random(GRID.size_vox) < dark, 1 / levels, values)
    image = BRAIN.with_voxels(np.where(BRAIN.voxels, values, 0).astype(np.float32))
    mapped = scales[method].standardise(image, BRAIN, "t1w").voxels
    assert np.isfinite(mapped).all() and mapped.min() >= 0 and mapped.max() <= 1
    order = np.argsort(image.voxels[BRAIN.voxels])
    assert (np.diff(mapped[BRAIN.voxels][order]) >= 0).all()


def test_robust_to_a_large_lesion(scales):
    """A bright mass of a tenth of the brain changes healthy intensities by less than a few hundredths."""
    image = prepared(7)
    mass = np.zeros(GRID.size_vox, bool)
    mass[20:28, 12:22, 14:24] = True
    mass &= BRAIN.voxels
    assert 0.04 < mass.sum() / BRAIN.voxels.sum() < 0.12
    with_mass = image.with_voxels(np.where(mass, 0.95, image.voxels).astype(np.float32))
    healthy = BRAIN.voxels & ~mass
    for method, scale in scales.items():
        change = scale.standardise(with_mass, BRAIN, "t1w").voxels - scale.standardise(image, BRAIN, "t1w").voxels
        assert np.abs(change[healthy]).mean() < 0.05, method


@pytest.mark.parametrize("method", ["z_score", "nyul", "white_matter"])
def test_error_for_too_few_voxels(method, scales, stored):
    voxels = np.zeros(GRID.size_vox, np.float32)
    voxels[20, 20, 20:24] = 0.5
    subject = stored("sub-tiny", BRAIN.with_voxels(voxels), prepared(1))
    where = "white matter" if method == "white_matter" else "brain"
    with pytest.raises(SubjectError, match=rf"sub-tiny: \d+ voxels of {where} are available .* expected at least 50"):
        scales[method].read(subject, GRID)
    if method == "nyul":
        with pytest.raises(SubjectError, match="sub-tiny: 4 voxels of brain are available"):
            IntensityScale.learn(method, ("t1w",), [subject], GRID)


def test_errors_for_unusable_images(scales, stored, tmp_path):
    scale = scales["nyul"]
    with pytest.raises(SubjectError, match="sub-one: has no prepared flair, expected one. Prepare the subject again"):
        scale.read(stored("sub-one", prepared(1)), GRID)
    subject = stored("sub-raw", prepared(1), prepared(2).with_voxels(300 * prepared(2).voxels))
    with pytest.raises(SubjectError, match=r"sub-raw: its prepared flair has intensities from 0 to 2\d\d, expected"):
        scale.read(subject, GRID)
    moved = Grid(GRID.size_vox, GRID.affine + np.array([[0, 0, 0, 2.0], *np.zeros((3, 4))]))
    mask = Volume(BRAIN.voxels, moved)
    with pytest.raises(SubjectError, match="sub-off: its prepared brain mask lies on .* expected the template grid"):
        scale.read(stored("sub-off", prepared(1), prepared(2), mask=mask), GRID)
    with pytest.raises(SubjectError, match="sub-gone: .* no such file.* Prepare the subject again"):
        scale.read(PreparedImages("sub-gone", {"t1w": tmp_path / "x.nii.gz"}, subject.brain_mask), GRID)


def test_landmarks_must_increase():
    with pytest.raises(ValueError, match="do not increase"):
        IntensityScale("nyul", {"t1w": (0, 0.5, 0.5, 1)})
