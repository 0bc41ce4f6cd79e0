import numpy as np
import pytest
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.volume import Grid, Volume, read_mask, read_volume
from voxout.preprocessing import brain_extraction
from voxout.preprocessing.brain_extraction import extract_brain, is_stripped
from voxout.preprocessing.resampling import canonical
from voxout.preprocessing.settings import BrainExtractionSettings

AUTO = BrainExtractionSettings()
GRID = Grid((60, 64, 60), np.array([[4, 0, 0, -120], [0, 4, 0, -128], [0, 0, 4, -120], [0, 0, 0, 1.0]]))


@pytest.fixture
def head(kit) -> Volume:
    """A ball of brain (1437 ml) in a bright shell."""
    voxels = np.random.default_rng(0).random(GRID.size_vox) * 0.02
    voxels[kit.ball(GRID, (0, 0, 0), 92)] = 0.9
    voxels[kit.ball(GRID, (0, 0, 0), 80)] = 0.1
    voxels[kit.ball(GRID, (0, 0, 0), 70)] = 0.6
    return Volume(voxels.astype(np.float32), GRID)


@pytest.fixture
def brain(kit) -> Volume:
    return Volume(kit.ball(GRID, (0, 0, 0), 70), GRID)


def no_network(monkeypatch, found: np.ndarray) -> None:
    monkeypatch.setattr(brain_extraction, "_deepbet", lambda t1w: t1w.with_voxels(found))


def test_a_given_mask_goes_first_and_is_not_touched(head, brain):
    found = extract_brain(head, AUTO, given=brain)
    assert found.method == "given" and found.mask is brain


def test_a_stripped_scan_is_known_by_its_empty_surroundings(head, brain, kit):
    stripped = head.with_voxels(np.where(brain.voxels, head.voxels, 0))
    # A dark ventricle inside and the small ringing of an earlier interpolation outside.
    stripped.voxels[30, 30:34, 30] = 0
    found = extract_brain(stripped, AUTO)
    assert found.method == "already stripped"
    assert kit.dice(found.mask.voxels, brain.voxels) > 0.99
    assert found.mask.voxels[30, 30:34, 30].all()
    assert not is_stripped(head, AUTO)


def test_noise_around_a_brain_is_not_stripped(head, brain):
    noisy = head.with_voxels(np.where(brain.voxels, head.voxels, np.abs(head.voxels % 0.02)))
    assert not is_stripped(noisy, AUTO)


def test_the_network_comes_next(head, brain, monkeypatch):
    no_network(monkeypatch, brain.voxels)
    found = extract_brain(head, AUTO)
    assert (found.method, found.notes) == ("deepbet", ())


def test_an_implausible_network_mask_falls_back_on_the_template(head, brain, monkeypatch):
    no_network(monkeypatch, np.zeros(GRID.size_vox, bool))
    monkeypatch.setattr(brain_extraction, "mask_from_template", lambda t1w, *, seed: brain)
    found = extract_brain(head, AUTO)
    assert found.method == "template"
    assert found.notes == ("deepbet's brain of 0 ml is not plausible: the template was registered instead",)


def test_the_sentences(head, brain, kit, monkeypatch):
    small = brain.with_voxels(kit.ball(GRID, (0, 0, 0), 42))
    no_network(monkeypatch, small.voxels)
    with pytest.raises(UserError) as caught:
        extract_brain(head, BrainExtractionSettings(method="deepbet"))
    assert str(caught.value) == (
        f"brain extraction (deepbet) found {small.voxels.sum() * 0.064:.0f} ml, expected 800-2200 ml; "
        "give a mask in column brain_mask"
    )
    with pytest.raises(UserError, match=r"the given brain mask holds 0 ml, expected 800-2200 ml"):
        extract_brain(head, AUTO, given=brain.with_voxels(np.zeros(GRID.size_vox, bool)))
    with pytest.raises(UserError, match="no brain mask is given"):
        extract_brain(head, BrainExtractionSettings(method="given"))


def test_an_empty_image_makes_the_network_find_nothing(head):
    empty = head.with_voxels(np.zeros(GRID.size_vox, np.float32))
    assert not brain_extraction._deepbet(empty).voxels.any()


@pytest.mark.parametrize("name", ["IXI012"])
def test_deepbet_on_a_real_head(name, real, kit):
    t1w = canonical(read_volume(real("ixi", f"sub-{name}", "anat", f"sub-{name}_T1w.nii.gz")))
    reference = canonical(
        read_mask(real("ixi", "derivatives", "reference", f"sub-{name}", "anat", f"sub-{name}_desc-brain_mask.nii.gz"))
    )
    found = extract_brain(t1w, AUTO)
    assert found.method == "deepbet"
    assert kit.dice(found.mask.voxels, reference.voxels) > 0.97


@pytest.mark.parametrize(
    ("cohort", "subject"), [("ms", "sub-ms07"), ("ms", "sub-ms26"), ("mdd1mm", "sub-02"), ("mdd1mm", "sub-08")]
)
def test_real_scans_that_are_stripped_already(cohort, subject, real):
    t1w = canonical(read_volume(real(cohort, subject, "anat", f"{subject}_T1w.nii.gz")))
    assert extract_brain(t1w.with_voxels(np.maximum(t1w.voxels, 0)), AUTO).method == "already stripped"
