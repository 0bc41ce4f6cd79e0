import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.errors import SubjectError
from voxout.data_manifests.images.volume import Grid, Volume, read_grid, read_mask, read_volume, write_volume
from voxout.preprocessing.prepare_subject import prepare_subject
from voxout.preprocessing.quality.verdict import Quality
from voxout.preprocessing.registration.coregistration import Alignment
from voxout.preprocessing.registration.resampling import itk_affine
from voxout.preprocessing.registration.template import load_template
from voxout.preprocessing.registration.template_transform import TemplateTransform
from voxout.preprocessing.settings import (
    BiasFieldSettings,
    BrainExtractionSettings,
    PreprocessingSettings,
    RegistrationSettings,
)

FAST = PreprocessingSettings(
    spacing_mm=4.0,
    brain_extraction=BrainExtractionSettings(method="none"),
    bias_field=BiasFieldSettings(enabled=False),
    registration=RegistrationSettings(transform="affine", working_spacing_mm=4.0),
)
GRID = load_template(4.0).grid


def make_subject(folder: Path, kit) -> SubjectRecord:
    """A skull-stripped brain with a dark lesion on the left, stored as PSR, with a lesion mask."""
    image, truth = kit.small_brain("PSR")
    lesion = kit.ball(image.grid, (truth @ [-30, -50, 25, 1])[:3], 9)
    voxels = (1000 * np.where(lesion, 0.1, 1) * image.voxels).astype(np.float32)
    t1w = write_volume(folder / "in" / "t1w.nii.gz", Volume(voxels, image.grid))
    mask = write_volume(folder / "in" / "lesion.nii.gz", Volume(lesion, image.grid))
    return SubjectRecord("01", "patient", {"t1w": t1w}, session_id="2", lesion_mask=mask)


@pytest.fixture
def subject(tmp_path, kit) -> SubjectRecord:
    return make_subject(tmp_path, kit)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, kit) -> tuple[SubjectRecord, OutputFolder, Quality]:
    """A subject, its prepared files and their quality, for tests that only read them."""
    folder = tmp_path_factory.mktemp("prepared")
    subject, out = make_subject(folder, kit), OutputFolder(folder / "out")
    return subject, out, prepare_subject(subject, FAST, out, seed=1)


@pytest.fixture
def out(tmp_path) -> OutputFolder:
    return OutputFolder(tmp_path / "out")


def with_flair(subject: SubjectRecord, change: np.ndarray, size=None) -> SubjectRecord:
    """Add a FLAIR-like image whose header is moved by an affine."""
    t1w = read_volume(subject.images["t1w"])
    flair = np.where(t1w.voxels > 20, 1200 - t1w.voxels, 0).astype(np.float32)
    path = subject.images["t1w"].with_name("flair.nii.gz")
    cut = tuple(slice(0, n) for n in size or flair.shape)
    write_volume(path, Volume(flair[cut], Grid(flair[cut].shape, change @ t1w.affine)))
    return replace(subject, images={**subject.images, "flair": path})


def test_prepare_writes_all_files(prepared):
    subject, out, quality = prepared
    assert quality.verdict != "fail" and quality == Quality.load(out.quality(subject))
    image = read_volume(out.prepared_image(subject, "t1w"))
    mask = read_mask(out.prepared_brain_mask(subject))
    assert image.grid.same_as(GRID) and mask.grid.same_as(GRID)
    assert image.voxels.min() == 0 and 0.8 < image.voxels.max() <= 1
    assert (image.voxels[~mask.voxels] == 0).all()
    native = read_mask(out.native_brain_mask(subject))
    assert native.grid.same_as(read_grid(subject.images["t1w"]))
    scan = read_volume(subject.images["t1w"]).voxels
    assert native.voxels[scan > 200].mean() > 0.999 and not native.voxels[scan == 0].mean() > 0.05
    assert out.quality_picture(subject).exists()
    left_behind = [path for path in out.root.rglob("*") if path.name.startswith(".")]
    assert left_behind == []


def test_lesion_keeps_its_position_and_side(prepared, kit):
    subject, out, _ = prepared
    lesion = read_mask(out.prepared_lesion_mask(subject))
    assert kit.millimetres(GRID)[lesion.voxels].mean(0) == pytest.approx([-30, -50, 25], abs=3)
    image = read_volume(out.prepared_image(subject, "t1w")).voxels
    core = kit.ball(GRID, (-30, -50, 25), 6)
    assert image[core].mean() < 0.35 < image[core[::-1]].mean()
    back = TemplateTransform.load(out.transform_folder(subject)).to_native(
        lesion, read_grid(subject.images["t1w"]), interpolation="nearest"
    )
    assert kit.dice(back.voxels, read_mask(subject.lesion_mask).voxels) > 0.75


def test_prepare_is_reproducible(prepared, tmp_path):
    subject, first, _ = prepared
    folders = [first, OutputFolder(tmp_path)]
    prepare_subject(subject, FAST, folders[1], seed=1)
    files = [sorted(p.relative_to(f.root) for p in f.root.rglob("*.*") if p.is_file()) for f in folders]
    assert files[0] == files[1] and len(files[0]) == 8
    for name in files[0]:
        assert (folders[0].root / name).read_bytes() == (folders[1].root / name).read_bytes(), name


def test_flair_on_another_grid_is_aligned(subject, out, kit):
    both = with_flair(subject, kit.turned(3.0, (5, -6, 4)))
    prepare_subject(both, FAST.model_copy(update={"modalities": ("t1w", "flair")}), out, seed=1)
    t1w, flair = (read_volume(out.prepared_image(both, m)).voxels for m in ("t1w", "flair"))
    inside = read_mask(out.prepared_brain_mask(both)).voxels
    assert np.corrcoef(t1w[inside], flair[inside])[0, 1] < -0.8
    assert (flair[~inside] == 0).all()


def test_lesion_mask_of_the_flair(subject, out, kit):
    """The lesion of the T1w on the grid of the FLAIR, whose header is off by a known transform."""
    move = kit.turned(3.0, (5, -6, 4))
    both = with_flair(subject, move)
    drawn = read_mask(subject.lesion_mask)
    moved = Volume(drawn.voxels, Grid(drawn.voxels.shape, move @ drawn.affine))
    on_flair = replace(both, mask_of="flair", lesion_mask=write_volume(both.lesion_mask.with_name("f.nii.gz"), moved))
    prepare_subject(on_flair, FAST, out, seed=1)
    assert not out.prepared_image(on_flair, "flair").exists(), "the FLAIR is needed only for the lesion mask"
    native = read_mask(out.native_lesion_mask(on_flair))
    assert native.grid.same_as(drawn.grid)
    assert kit.dice(native.voxels, drawn.voxels) > 0.85
    lesion = read_mask(out.prepared_lesion_mask(on_flair))
    assert kit.millimetres(GRID)[lesion.voxels].mean(0) == pytest.approx([-30, -50, 25], abs=3)
    alignment = Alignment.load(out.alignment(on_flair, "flair"))
    transform = TemplateTransform.load(out.transform_folder(on_flair))
    back = transform.to_native(lesion, moved.grid, interpolation="nearest", from_t1w=alignment.transform)
    assert kit.dice(back.voxels, moved.voxels) > 0.7, "from the template to the FLAIR in one step"


def test_user_transform_replaces_registration(prepared, tmp_path):
    """With an affine written by ITK, no registration runs."""
    subject, out, _ = prepared
    found = TemplateTransform.load(out.transform_folder(subject))
    path = tmp_path / "to_template.tfm"
    shifted = found.affine.copy()
    shifted[:3, 3] += [3, 0, 0]
    sitk.WriteTransform(itk_affine(shifted), str(path))
    given = replace(subject, template_transform=path)
    second = OutputFolder(tmp_path / "second")
    prepare_subject(given, FAST, second, seed=1)
    assert TemplateTransform.load(second.transform_folder(given)).affine == pytest.approx(shifted, abs=1e-6)


def test_registration_none_for_images_in_template_space(subject, out, kit):
    brain = load_template(3.0).t1w
    path = write_volume(subject.images["t1w"].with_name("mni.nii.gz"), brain)
    there = SubjectRecord("02", "control", {"t1w": path})
    no_registration = RegistrationSettings(transform="none", working_spacing_mm=4.0)
    settings = FAST.model_copy(update={"registration": no_registration})
    prepare_subject(there, settings, out, seed=1)
    assert (TemplateTransform.load(out.transform_folder(there)).affine == np.eye(4)).all()
    image, template = read_volume(out.prepared_image(there, "t1w")), load_template(4.0)
    inside = template.brain_mask.voxels
    assert np.corrcoef(image.voxels[inside], template.t1w.voxels[inside])[0, 1] > 0.98


def test_flair_with_partial_coverage_warns(subject, out):
    size = read_grid(subject.images["t1w"]).size_vox
    half = with_flair(subject, np.eye(4), (size[0], size[1] // 2, size[2]))
    quality = prepare_subject(half, FAST.model_copy(update={"modalities": ("t1w", "flair")}), out, seed=1)
    assert quality.verdict == "warn"
    assert any("the FLAIR covers only" in reason for reason in quality.reasons)
    t1w, flair = (read_volume(out.prepared_image(half, m)).voxels for m in ("t1w", "flair"))
    brain = read_mask(out.prepared_brain_mask(half)).voxels
    assert 0.3 < brain.sum() / (t1w > 0).sum() < 0.7, "brain outside the field of view is excluded from the brain mask"
    assert (flair[brain] > 0).mean() > 0.99


@pytest.mark.slow
def test_unrelated_flair_warns(subject, out, kit):
    both = with_flair(subject, kit.turned(0.0, (2, 2, 2)))
    flair = read_volume(both.images["flair"])
    noise = np.random.default_rng(0).random(flair.voxels.shape).astype(np.float32)
    write_volume(both.images["flair"], flair.with_voxels(noise))
    quality = prepare_subject(both, FAST.model_copy(update={"modalities": ("t1w", "flair")}), out, seed=1)
    assert any("the FLAIR may not be aligned with the T1w" in reason for reason in quality.reasons)


@pytest.mark.parametrize("swapped", [False, True])
def test_swapped_t1w_and_flair_warn(tmp_path, out, swapped):
    brain = load_template(3.0).t1w
    t1w = write_volume(tmp_path / "t1w.nii.gz", brain)
    flair = write_volume(tmp_path / "flair.nii.gz", brain.with_voxels(np.sqrt(brain.voxels)))
    images = {"t1w": flair, "flair": t1w} if swapped else {"t1w": t1w, "flair": flair}
    no_registration = RegistrationSettings(transform="none", working_spacing_mm=4.0)
    settings = FAST.model_copy(update={"registration": no_registration, "modalities": ("t1w", "flair")})
    quality = prepare_subject(SubjectRecord("02", "control", images), settings, out, seed=1)
    assert any("may be swapped" in reason for reason in quality.reasons) == swapped


def test_lesion_lost_between_voxels_warns(subject, out):
    mask = read_mask(subject.lesion_mask)
    # On a grid twice as fine, one voxel that is not the nearest of any template voxel.
    fine = Grid((2 * 64, 2 * 56, 2 * 56), mask.affine @ np.diag([0.5, 0.5, 0.5, 1]))
    dot = np.zeros(fine.size_vox, bool)
    dot[51, 50, 53] = True
    t1w = read_volume(subject.images["t1w"])
    fine_t1w = t1w.voxels.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    lost = replace(
        subject,
        images={"t1w": write_volume(subject.images["t1w"].with_name("fine.nii.gz"), Volume(fine_t1w, fine))},
        lesion_mask=write_volume(subject.lesion_mask.with_name("dot.nii.gz"), Volume(dot, fine)),
    )
    quality = prepare_subject(lost, FAST.model_copy(update={"spacing_mm": 5.0}), out, seed=1)
    assert quality.verdict == "warn"
    assert any("fall between the voxels of the template grid" in reason for reason in quality.reasons)


def error_message(subject: SubjectRecord, out: OutputFolder, settings: PreprocessingSettings = FAST) -> str:
    with pytest.raises(SubjectError) as caught:
        prepare_subject(subject, settings, out, seed=1)
    message = str(caught.value)
    assert message.startswith("sub-01_ses-2: ")
    assert message.count("sub-01_ses-2") == 1
    return message


def test_error_for_a_missing_modality(subject, out):
    message = error_message(subject, out, FAST.model_copy(update={"modalities": ("t1w", "flair")}))
    assert "has no FLAIR, expected one (required by preprocessing.modalities)" in message


def test_error_for_a_mask_on_another_grid(subject, out):
    mask = read_mask(subject.lesion_mask)
    thin = Volume(mask.voxels[:, :, ::2], Grid(mask.voxels[:, :, ::2].shape, mask.affine @ np.diag([1, 1, 2.0, 1])))
    write_volume(subject.lesion_mask, thin)
    message = error_message(subject, out)
    assert "lesion mask and T1w have different grids" in message
    assert "4x4x8 mm, PSR and" in message
    write_volume(subject.lesion_mask, mask)
    assert "brain mask and T1w have different grids" in error_message(
        replace(subject, brain_mask=write_volume(subject.lesion_mask.with_name("brain.nii.gz"), thin)), out
    )


def test_empty_lesion_mask_fails_patients_only(subject, out):
    mask = read_mask(subject.lesion_mask)
    write_volume(subject.lesion_mask, mask.with_voxels(np.zeros_like(mask.voxels)))
    assert "the lesion mask is empty" in error_message(subject, out)
    prepare_subject(replace(subject, group="control"), FAST, out, seed=1)
    assert out.prepared_lesion_mask(subject).exists()


def test_error_for_a_standardised_scan(subject, out):
    t1w = read_volume(subject.images["t1w"])
    write_volume(subject.images["t1w"], t1w.with_voxels(t1w.voxels - 300))
    assert "the T1w is negative in" in error_message(subject, out)


def test_error_for_an_implausible_brain_volume(subject, out):
    tight = FAST.model_copy(update={"brain_extraction": BrainExtractionSettings(method="none", smallest_ml=2000)})
    assert "expected 2000-2200 ml; give a mask in column brain_mask" in error_message(subject, out, tight)


def test_failed_registration_keeps_the_picture(subject, out):
    strict = RegistrationSettings(transform="affine", working_spacing_mm=4.0, smallest_overlap=0.999)
    message = error_message(subject, out, FAST.model_copy(update={"registration": strict}))
    assert "registration failed: the warped brain overlaps the template's with Dice 0.9" in message
    assert out.quality_picture(subject).exists()
    assert Quality.load(out.quality(subject)).verdict == "fail"


def test_error_for_a_damaged_file(subject, out):
    path = subject.images["t1w"]
    path.write_bytes(path.read_bytes()[:2000])
    assert "t1w.nii.gz" in error_message(subject, out)


def test_import_without_ants_and_torch():
    script = (
        "import sys, voxout.preprocessing.prepare_subject; print([m for m in ('ants', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cohort", "name", "modalities", "unusual"),
    [
        ("ixi", "sub-IXI012", ("t1w",), ()),
        ("ms", "sub-ms07", ("t1w", "flair"), ()),
        ("wmh_unaligned", "sub-w15", ("t1w", "flair"), ()),
        # Wide sulci and a small cerebellum: it has to be warped further than most.
        ("mdd1mm", "sub-02", ("t1w",), ("jacobian_percentile_1",)),
    ],
)
def test_prepare_real_subjects(cohort, name, modalities, unusual, real, out, capfd):
    files = {"t1w": "T1w", "flair": "FLAIR"}
    images: dict[str, Path] = {m: real(cohort, name, "anat", f"{name}_{files[m]}.nii.gz") for m in modalities}
    subject = SubjectRecord(name.removeprefix("sub-"), "control", images)
    quality = prepare_subject(subject, PreprocessingSettings(modalities=modalities), out, seed=1)
    assert capfd.readouterr().out == ""
    assert quality.verdict == ("warn" if unusual else "pass"), quality.reasons
    assert quality.unusual == unusual
    assert quality.brain_overlap > 0.96
    assert quality.similarity_after > quality.similarity_before + 0.1
    assert out.quality_picture(subject).stat().st_size < 250_000
