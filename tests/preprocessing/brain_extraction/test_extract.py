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


def drawn_head(kit, degrees: float) -> tuple[Volume, Volume, np.ndarray]:
    """The small brain within skull, scalp and noise; its mask; where the template lies in it."""
    image, truth = kit.small_brain(degrees=degrees)
    image = canonical(image)
    brain = np.asarray(ndimage.binary_fill_holes(image.voxels > 0.02))
    distance = np.asarray(ndimage.distance_transform_edt(~brain, sampling=image.grid.spacing_mm))
    noise = np.random.default_rng(0).random(brain.shape) * 0.02
    head = np.select([brain, distance < 8, distance < 15], [image.voxels, 0.1, 0.9], noise)
    return image.with_voxels(head.astype(np.float32)), image.with_voxels(brain), truth


@pytest.fixture(scope="module")
def scene(kit) -> tuple[Volume, Volume, np.ndarray]:
    return drawn_head(kit, 8.0)


@pytest.fixture
def head(scene) -> Volume:
    return scene[0]


@pytest.fixture
def brain(scene) -> Volume:
    return scene[1]


@pytest.fixture
def network(monkeypatch, scene):
    """Stands in for deepbet (seconds, and it knows real heads alone) and for the fit of the drawn head."""

    def answers(on_scan: np.ndarray, upright: Volume | None) -> None:
        def found(t1w: Volume) -> Volume:
            if t1w.voxels.shape == on_scan.shape:
                return t1w.with_voxels(on_scan)
            if upright is None:
                return t1w.with_voxels(np.zeros(t1w.voxels.shape, bool))
            return TemplateTransform.from_affine(np.eye(4)).to_native(upright, t1w.grid, interpolation="linear")

        monkeypatch.setattr(extract, "deepbet", found)
        monkeypatch.setattr(extract, "fit_head", lambda t1w, *, seed: TemplateFit(scene[2]))

    return answers


def leaked(brain: Volume, kit, truth: np.ndarray) -> np.ndarray:
    """The brain and as much again of the face below it."""
    return brain.voxels | kit.ball(brain.grid, (truth @ [0, 25, -75, 1])[:3], 48)


def test_a_given_mask_goes_first_and_is_not_touched(head, brain):
    found = extract_brain(head, AUTO, given=brain)
    assert found.method == "given" and found.mask is brain


def test_a_stripped_scan_is_known_by_its_empty_surroundings(head, brain, kit):
    stripped = head.with_voxels(np.where(brain.voxels, head.voxels, 0))
    # A dark ventricle inside and the small ringing of an earlier interpolation outside.
    middle = tuple(int(n) for n in ndimage.center_of_mass(brain.voxels))
    ventricle = (middle[0], slice(middle[1], middle[1] + 4), middle[2])
    stripped.voxels[ventricle] = 0
    found = extract_brain(stripped, AUTO)
    assert found.method == "already stripped"
    assert kit.dice(found.mask.voxels, brain.voxels) > 0.97
    assert found.mask.voxels[ventricle].all()
    assert not is_stripped(head, AUTO)


def test_noise_around_a_brain_is_not_stripped(head, brain):
    noisy = head.with_voxels(np.where(brain.voxels, head.voxels, np.abs(head.voxels % 0.02)))
    assert not is_stripped(noisy, AUTO)


def test_the_network_comes_next(head, brain, network):
    network(brain.voxels, None)
    found = extract_brain(head, AUTO)
    assert (found.method, found.notes) == ("deepbet", ())
    assert np.array_equal(found.mask.voxels, brain.voxels)


def test_crumbs_and_holes_of_the_network_are_mended(head, brain, network):
    middle = tuple(int(n) for n in ndimage.center_of_mass(brain.voxels))
    crumbly = brain.voxels.copy()
    crumbly[middle] = False
    crumbly[0, 0, 0] = True
    network(crumbly, None)
    assert np.array_equal(extract_brain(head, AUTO).mask.voxels, brain.voxels)


def test_a_leaked_mask_is_told_by_the_template_and_looked_for_again(head, brain, scene, network, kit):
    network(leaked(brain, kit, scene[2]), brain)
    found = extract_brain(head, AUTO)
    assert found.method == "deepbet, upright copy"
    # There and back by interpolation on voxels of 4 mm.
    assert kit.dice(found.mask.voxels, brain.voxels) > 0.96
    [note] = found.notes
    assert note.startswith("brain extraction (deepbet) found what overlaps the template's brain with Dice 0.")
    assert note.endswith("expected at least 0.89")


def test_without_any_network_mask_the_template_is_registered(head, brain, network, monkeypatch):
    network(np.zeros(head.voxels.shape, bool), None)
    monkeypatch.setattr(extract, "mask_from_template", lambda t1w, *, seed: brain)
    found = extract_brain(head, AUTO)
    assert found.method == "template"
    assert found.notes == (
        "brain extraction (deepbet) found 0 ml, expected 800-2200 ml",
        "brain extraction (deepbet, upright copy) found 0 ml, expected 800-2200 ml",
    )


@pytest.mark.parametrize("better", ["upright", "scan"])
def test_of_a_head_far_askew_the_better_of_two_masks_is_taken(better, kit, monkeypatch):
    head, brain, _ = drawn_head(kit, 28.0)
    poor = brain.with_voxels(np.asarray(ndimage.binary_dilation(brain.voxels)))
    on_scan, upright = (poor, brain) if better == "upright" else (brain, poor)

    def found(t1w: Volume) -> Volume:
        if t1w is head:
            return on_scan
        return TemplateTransform.from_affine(np.eye(4)).to_native(upright, t1w.grid, interpolation="linear")

    monkeypatch.setattr(extract, "deepbet", found)
    extracted = extract_brain(head, BrainExtractionSettings(smallest_overlap=0.8))
    assert extracted.method == ("deepbet, upright copy" if better == "upright" else "deepbet")
    assert extracted.notes == ()
    assert kit.dice(extracted.mask.voxels, brain.voxels) > 0.96


def test_the_sentences(head, brain, kit, network):
    middle = (brain.affine @ [*ndimage.center_of_mass(brain.voxels), 1])[:3]
    small = kit.ball(brain.grid, middle, 42)
    network(small, None)
    with pytest.raises(UserError) as caught:
        extract_brain(head, BrainExtractionSettings(method="deepbet"))
    assert str(caught.value) == (
        f"brain extraction (deepbet) found {small.sum() * 0.064:.0f} ml, expected 800-2200 ml; "
        "brain extraction (deepbet, upright copy) found 0 ml, expected 800-2200 ml; "
        "look at the scan, or give a mask in column brain_mask"
    )
    halves = brain.voxels.copy()
    halves[:, int((np.nonzero(brain.voxels)[1]).mean()) + np.arange(-1, 2), :] = False
    network(halves, None)
    with pytest.raises(UserError, match=r"found pieces, the largest with 5\d% of the volume, expected one brain"):
        extract_brain(head, BrainExtractionSettings(method="deepbet"))
    with pytest.raises(UserError) as caught:
        extract_brain(head, AUTO, given=brain.with_voxels(np.zeros_like(brain.voxels)))
    assert str(caught.value) == (
        "the given brain mask holds 0 ml, expected 800-2200 ml; give another in column brain_mask, or leave the "
        "column empty"
    )
    with pytest.raises(UserError, match="no brain mask is given"):
        extract_brain(head, BrainExtractionSettings(method="given"))


def test_an_empty_image_makes_the_network_find_nothing(head):
    empty = head.with_voxels(np.zeros_like(head.voxels))
    assert not backends.deepbet(empty).voxels.any()


def test_of_thick_slices_the_network_sees_thin_ones(head, brain, monkeypatch):
    seen = []

    def found(t1w: Volume) -> Volume:
        seen.append(t1w.grid)
        return TemplateTransform.from_affine(np.eye(4)).to_native(brain, t1w.grid, interpolation="linear")

    monkeypatch.setattr(extract, "deepbet", found)
    thick = head.grid.affine @ np.diag([1, 1, 2.5, 1])
    grid = Grid((*head.grid.size_vox[:2], int(head.grid.size_vox[2] / 2.5)), thick)
    sliced = TemplateTransform.from_affine(np.eye(4)).to_native(head, grid, interpolation="linear")
    extracted = extract_brain(sliced, AUTO)
    assert seen[0].spacing_mm == pytest.approx(head.grid.spacing_mm)
    assert extracted.mask.grid is grid
    truth = TemplateTransform.from_affine(np.eye(4)).to_native(brain, grid, interpolation="linear")
    assert np.array_equal(extracted.mask.voxels, truth.voxels)


def test_the_network_sees_the_head_as_it_lies_in_the_array(head, brain, kit):
    # deepbet sorts axes by their directions in the scanner: it saw the upright copy of a head that lay 57 degrees
    # askew on its back, and took the orbits along.
    lying = np.eye(4)
    lying[:3, :3] = Rotation.from_euler("x", 57, degrees=True).as_matrix()
    found = backends.deepbet(head)
    assert kit.dice(found.voxels, brain.voxels) > 0.9
    askew = Volume(head.voxels, Grid(head.grid.size_vox, lying @ head.affine))
    assert np.array_equal(backends.deepbet(askew).voxels, found.voxels)


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
    ("cohort", "subject"), [("ms", "sub-ms07"), ("ms", "sub-ms26"), ("mdd1mm", "sub-02"), ("mdd1mm", "sub-08")]
)
def test_real_scans_that_are_stripped_already(cohort, subject, real):
    t1w = canonical(read_volume(real(cohort, subject, "anat", f"{subject}_T1w.nii.gz")))
    assert extract_brain(t1w.with_voxels(np.maximum(t1w.voxels, 0)), AUTO).method == "already stripped"
