import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.volume import Grid, Volume, read_mask, read_volume
from voxout.preprocessing.brain_extraction import backends, extract
from voxout.preprocessing.brain_extraction.extract import extract_brain, is_stripped
from voxout.preprocessing.brain_extraction.head_pose import TemplateFit
from voxout.preprocessing.registration.resampling import canonical
from voxout.preprocessing.registration.template_transform import TemplateTransform
from voxout.preprocessing.settings import BrainExtractionSettings

AUTO = BrainExtractionSettings()


def head_model(kit, degrees: float) -> tuple[Volume, Volume, np.ndarray]:
    """The small brain with skull, scalp and noise; its mask; the affine from the template to it."""
    image, truth = kit.small_brain(degrees=degrees)
    image = canonical(image)
    brain = np.asarray(ndimage.binary_fill_holes(image.voxels > 0.02))
    distance = np.asarray(ndimage.distance_transform_edt(~brain, sampling=image.grid.spacing_mm))
    noise = np.random.default_rng(0).random(brain.shape) * 0.02
    head = np.select([brain, distance < 8, distance < 15], [image.voxels, 0.1, 0.9], noise)
    return image.with_voxels(head.astype(np.float32)), image.with_voxels(brain), truth


@pytest.fixture(scope="module")
def scene(kit) -> tuple[Volume, Volume, np.ndarray]:
    return head_model(kit, 8.0)


@pytest.fixture
def head(scene) -> Volume:
    return scene[0]


@pytest.fixture
def brain(scene) -> Volume:
    return scene[1]


@pytest.fixture
def network(monkeypatch, scene):
    """Replaces deepbet, which is slow and works only on real heads, and the fit of the head model."""

    def set_masks(on_scan: np.ndarray, upright: Volume | None) -> None:
        def fake_deepbet(t1w: Volume) -> Volume:
            if t1w.voxels.shape == on_scan.shape:
                return t1w.with_voxels(on_scan)
            if upright is None:
                return t1w.with_voxels(np.zeros(t1w.voxels.shape, bool))
            return TemplateTransform.from_affine(np.eye(4)).to_native(upright, t1w.grid, interpolation="linear")

        monkeypatch.setattr(extract, "deepbet", fake_deepbet)
        monkeypatch.setattr(extract, "fit_head", lambda t1w, *, seed: TemplateFit(scene[2]))

    return set_masks


def leaked(brain: Volume, kit, truth: np.ndarray) -> np.ndarray:
    """The brain mask extended into the face below it."""
    return brain.voxels | kit.ball(brain.grid, (truth @ [0, 25, -75, 1])[:3], 48)


def test_given_mask_is_used_unchanged(head, brain):
    found = extract_brain(head, AUTO, given=brain)
    assert found.method == "given" and found.mask is brain


def test_stripped_scan_is_detected(head, brain, kit):
    stripped = head.with_voxels(np.where(brain.voxels, head.voxels, 0))
    # A dark ventricle inside the brain.
    middle = tuple(int(n) for n in ndimage.center_of_mass(brain.voxels))
    ventricle = (middle[0], slice(middle[1], middle[1] + 4), middle[2])
    stripped.voxels[ventricle] = 0
    found = extract_brain(stripped, AUTO)
    assert found.method == "already stripped"
    assert kit.dice(found.mask.voxels, brain.voxels) > 0.97
    assert found.mask.voxels[ventricle].all()
    assert not is_stripped(head, AUTO)


def test_scan_with_background_noise_is_not_stripped(head, brain):
    noisy = head.with_voxels(np.where(brain.voxels, head.voxels, np.abs(head.voxels % 0.02)))
    assert not is_stripped(noisy, AUTO)


def test_deepbet_is_used_without_a_mask(head, brain, network):
    network(brain.voxels, None)
    found = extract_brain(head, AUTO)
    assert (found.method, found.notes) == ("deepbet", ())
    assert np.array_equal(found.mask.voxels, brain.voxels)


def test_small_pieces_and_holes_are_removed(head, brain, network):
    middle = tuple(int(n) for n in ndimage.center_of_mass(brain.voxels))
    ragged = brain.voxels.copy()
    ragged[middle] = False
    ragged[0, 0, 0] = True
    network(ragged, None)
    assert np.array_equal(extract_brain(head, AUTO).mask.voxels, brain.voxels)


def test_leaked_mask_is_replaced_by_that_of_the_upright_copy(head, brain, scene, network, kit):
    network(leaked(brain, kit, scene[2]), brain)
    found = extract_brain(head, AUTO)
    assert found.method == "deepbet, upright copy"
    # The mask was interpolated twice on voxels of 4 mm.
    assert kit.dice(found.mask.voxels, brain.voxels) > 0.96
    [note] = found.notes
    assert note.startswith("brain extraction (deepbet) found a mask that overlaps the template's brain with Dice 0.")
    assert note.endswith("expected at least 0.89")


def test_template_registration_is_the_fallback(head, brain, network, monkeypatch):
    network(np.zeros(head.voxels.shape, bool), None)
    monkeypatch.setattr(extract, "mask_from_template", lambda t1w, *, seed: brain)
    found = extract_brain(head, AUTO)
    assert found.method == "template"
    assert found.notes == (
        "brain extraction (deepbet) found 0 ml, expected 800-2200 ml",
        "brain extraction (deepbet, upright copy) found 0 ml, expected 800-2200 ml",
    )


@pytest.mark.parametrize("better", ["upright", pytest.param("scan", marks=pytest.mark.slow)])
def test_better_mask_of_a_tilted_head_is_used(better, kit, monkeypatch):
    head, brain, _ = head_model(kit, 28.0)
    poor = brain.with_voxels(np.asarray(ndimage.binary_dilation(brain.voxels)))
    on_scan, upright = (poor, brain) if better == "upright" else (brain, poor)

    def fake_deepbet(t1w: Volume) -> Volume:
        if t1w is head:
            return on_scan
        return TemplateTransform.from_affine(np.eye(4)).to_native(upright, t1w.grid, interpolation="linear")

    monkeypatch.setattr(extract, "deepbet", fake_deepbet)
    monkeypatch.setattr(extract, "_SMALLEST_OVERLAP", 0.8)
    extracted = extract_brain(head, BrainExtractionSettings())
    assert extracted.method == ("deepbet, upright copy" if better == "upright" else "deepbet")
    assert extracted.notes == ()
    assert kit.dice(extracted.mask.voxels, brain.voxels) > 0.96


def test_error_messages(head, brain, kit, network):
    middle = (brain.affine @ [*ndimage.center_of_mass(brain.voxels), 1])[:3]
    small = kit.ball(brain.grid, middle, 42)
    network(small, None)
    with pytest.raises(UserError) as caught:
        extract_brain(head, BrainExtractionSettings(method="deepbet"))
    assert str(caught.value) == (
        f"brain extraction (deepbet) found {small.sum() * 0.064:.0f} ml, expected 800-2200 ml; "
        "brain extraction (deepbet, upright copy) found 0 ml, expected 800-2200 ml; "
        "check the scan, or give a mask in column brain_mask"
    )
    halves = brain.voxels.copy()
    halves[:, int((np.nonzero(brain.voxels)[1]).mean()) + np.arange(-1, 2), :] = False
    network(halves, None)
    with pytest.raises(
        UserError, match=r"found several pieces, the largest with 5\d% of the volume, expected one brain"
    ):
        extract_brain(head, BrainExtractionSettings(method="deepbet"))
    with pytest.raises(UserError) as caught:
        extract_brain(head, AUTO, given=brain.with_voxels(np.zeros_like(brain.voxels)))
    assert str(caught.value) == (
        "the given brain mask holds 0 ml, expected 800-2200 ml; give another in column brain_mask, or leave the "
        "column empty"
    )
    with pytest.raises(UserError, match="no brain mask is given"):
        extract_brain(head, BrainExtractionSettings(method="given"))


def test_deepbet_on_an_empty_image(head):
    empty = head.with_voxels(np.zeros_like(head.voxels))
    assert not backends.deepbet(empty).voxels.any()


def test_thick_slices_are_refined_for_deepbet(head, brain, monkeypatch):
    grids = []

    def fake_deepbet(t1w: Volume) -> Volume:
        grids.append(t1w.grid)
        return TemplateTransform.from_affine(np.eye(4)).to_native(brain, t1w.grid, interpolation="linear")

    monkeypatch.setattr(extract, "deepbet", fake_deepbet)
    thick = head.grid.affine @ np.diag([1, 1, 2.5, 1])
    grid = Grid((*head.grid.size_vox[:2], int(head.grid.size_vox[2] / 2.5)), thick)
    sliced = TemplateTransform.from_affine(np.eye(4)).to_native(head, grid, interpolation="linear")
    extracted = extract_brain(sliced, AUTO)
    assert grids[0].spacing_mm == pytest.approx(head.grid.spacing_mm)
    assert extracted.mask.grid is grid
    truth = TemplateTransform.from_affine(np.eye(4)).to_native(brain, grid, interpolation="linear")
    assert np.array_equal(extracted.mask.voxels, truth.voxels)


def test_deepbet_ignores_axis_directions(head, brain, kit):
    # Regression test: deepbet permuted the axes of the upright copy of a head tilted by 57 degrees, and its mask
    # included the orbits.
    lying = np.eye(4)
    lying[:3, :3] = Rotation.from_euler("x", 57, degrees=True).as_matrix()
    found = backends.deepbet(head)
    assert kit.dice(found.voxels, brain.voxels) > 0.9
    tilted = Volume(head.voxels, Grid(head.grid.size_vox, lying @ head.affine))
    assert np.array_equal(backends.deepbet(tilted).voxels, found.voxels)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["IXI012"])
def test_deepbet_on_a_real_head(name, real, kit):
    t1w = canonical(read_volume(real("ixi", f"sub-{name}", "anat", f"sub-{name}_T1w.nii.gz")))
    reference = canonical(
        read_mask(real("ixi", "derivatives", "reference", f"sub-{name}", "anat", f"sub-{name}_desc-brain_mask.nii.gz"))
    )
    found = extract_brain(t1w, AUTO)
    assert found.method in ("deepbet", "deepbet, upright copy") and not found.notes
    assert kit.dice(found.mask.voxels, reference.voxels) > 0.97


@pytest.mark.parametrize(
    ("cohort", "subject"),
    [
        ("ms", "sub-ms07"),
        ("ms", "sub-ms26"),
        pytest.param("mdd1mm", "sub-02", marks=pytest.mark.slow),
        pytest.param("mdd1mm", "sub-08", marks=pytest.mark.slow),
    ],
)
def test_real_stripped_scans(cohort, subject, real):
    t1w = canonical(read_volume(real(cohort, subject, "anat", f"{subject}_T1w.nii.gz")))
    assert extract_brain(t1w.with_voxels(np.maximum(t1w.voxels, 0)), AUTO).method == "already stripped"
