"""check and prepare report the same problems with the same messages."""

import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from voxout.data_manifests.cohort.check import check_manifest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.errors import SubjectError, UserError, for_terminal
from voxout.data_manifests.images.volume import read_grid
from voxout.preprocessing.brain_extraction.availability import require_method
from voxout.preprocessing.brain_extraction.extract import extract_brain
from voxout.preprocessing.prepare_subject import prepare_subject
from voxout.preprocessing.settings import (
    BiasFieldSettings,
    BrainExtractionSettings,
    PreprocessingSettings,
    RegistrationSettings,
)
from voxout.preprocessing.subject_inputs import (
    contrast_agent_warnings,
    needed_images,
    refusals,
    template_space_warnings,
)

from ..data_manifests.as_another import folder_of_another

SETTINGS = PreprocessingSettings(
    spacing_mm=4.0,
    bias_field=BiasFieldSettings(enabled=False),
    registration=RegistrationSettings(transform="affine", working_spacing_mm=4.0),
)
SIZE, AFFINE = (24, 28, 22), np.diag([8.0, 8.0, 8.0, 1.0])
SMALL = np.zeros(SIZE, np.uint8)
SMALL[8:16, 8:18, 6:18] = 1  # 492 ml
BRAIN = np.zeros(SIZE, np.uint8)
BRAIN[4:20, 4:20, 4:18] = 1  # 1835 ml
LARGE = np.zeros(SIZE, np.uint8)
LARGE[2:22, 2:26, 2:20] = 1  # 4424 ml


def saved(path, voxels, affine=AFFINE):
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


@pytest.fixture
def subject(tmp_path):
    voxels = (100 * BRAIN + np.random.default_rng(1).random(SIZE)).astype(np.float32)
    return SubjectRecord("1", "patient", {"t1w": saved(tmp_path / "t1w.nii", voxels)})


def offset(subject, folder):
    return replace(subject, images={"t1w": saved(folder / "x.nii", BRAIN.astype(np.float32) - 1)}), SETTINGS


def small_mask(subject, folder):
    return replace(subject, brain_mask=saved(folder / "x.nii", SMALL)), SETTINGS


def large_mask(subject, folder):
    return replace(subject, brain_mask=saved(folder / "x.nii", LARGE)), SETTINGS


def empty_mask(subject, folder):
    return replace(subject, brain_mask=saved(folder / "x.nii", SMALL * 0)), SETTINGS


def mask_on_another_grid(subject, folder):
    return replace(subject, brain_mask=saved(folder / "x.nii", BRAIN, AFFINE * 2)), SETTINGS


def lesions_on_another_grid(subject, folder):
    return replace(subject, lesion_mask=saved(folder / "x.nii", SMALL, AFFINE * 2)), SETTINGS


def no_lesion(subject, folder):
    return replace(subject, lesion_mask=saved(folder / "x.nii", SMALL * 0)), SETTINGS


def no_flair(subject, folder):
    return subject, SETTINGS.model_copy(update={"modalities": ("t1w", "flair")})


def no_transform(subject, folder):
    return replace(subject, template_transform=folder / "x.h5"), SETTINGS


def transform_of_fsl(subject, folder):
    (folder / "x.mat").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    return replace(subject, template_transform=folder / "x.mat"), SETTINGS


def given_without_mask(subject, folder):
    return subject, SETTINGS.model_copy(update={"brain_extraction": BrainExtractionSettings(method="given")})


def several_problems(subject, folder):
    return replace(offset(subject, folder)[0], template_transform=folder / "x.h5"), SETTINGS


INVALID = [
    offset,
    small_mask,
    large_mask,
    empty_mask,
    mask_on_another_grid,
    lesions_on_another_grid,
    no_lesion,
    no_flair,
    no_transform,
    transform_of_fsl,
    given_without_mask,
    several_problems,
]


def checked(subject, settings):
    def judge(record, scans, brain):
        return refusals(record, settings, scans, brain)

    manifest = Manifest((subject,))
    return check_manifest(manifest, modalities=settings.modalities, judge=judge, fewest_controls=0)


@pytest.mark.parametrize("invalid", INVALID, ids=lambda invalid: invalid.__name__)
def test_check_and_prepare_report_the_same_problems(subject, tmp_path, invalid):
    changed, settings = invalid(subject, tmp_path)
    named = [problem.sentence for problem in checked(changed, settings).problems]
    with pytest.raises(SubjectError) as caught:
        prepare_subject(changed, settings, OutputFolder(tmp_path / "out"), seed=1)
    assert named == list(caught.value.problems)
    assert len(named) == (2 if invalid is several_problems else 1)


def test_unreadable_mask_is_reported():
    with folder_of_another() as folder:
        t1w = saved(folder / "t1w.nii", (100 * BRAIN + np.random.default_rng(1).random(SIZE)).astype(np.float32))
        mask = saved(folder / "mask.nii", BRAIN)
        mask.chmod(0)
        unreadable = SubjectRecord("1", "patient", {"t1w": t1w}, brain_mask=mask)
        (problem,) = checked(unreadable, SETTINGS).problems
        with pytest.raises(SubjectError) as caught:
            prepare_subject(unreadable, SETTINGS, OutputFolder(folder / "out"), seed=1)
        assert for_terminal(problem.sentence) == (
            f"sub-1: {mask}: cannot be opened (Permission denied). Check the permissions of the file and its folders."
        )
        assert [problem.sentence] == list(caught.value.problems)
        assert not (folder / "out").exists()


def test_valid_inputs_have_no_problems(subject, tmp_path):
    masked = replace(subject, brain_mask=saved(tmp_path / "x.nii", BRAIN))
    assert checked(masked, SETTINGS).problems == checked(subject, SETTINGS).problems == ()


def test_unused_brain_mask_is_not_checked(subject, tmp_path):
    changed, _ = small_mask(subject, tmp_path)
    deepbet = SETTINGS.model_copy(update={"brain_extraction": BrainExtractionSettings(method="deepbet")})
    assert checked(changed, deepbet).problems == ()


def test_only_needed_images_are_checked(subject, tmp_path):
    flair = saved(tmp_path / "flair.nii", BRAIN.astype(np.float32) - 1)
    with_flair = replace(subject, images={**subject.images, "flair": flair})
    assert needed_images(with_flair, SETTINGS) == ("t1w",)
    assert checked(with_flair, SETTINGS).problems == ()
    (problem,) = checked(with_flair, SETTINGS.model_copy(update={"modalities": ("t1w", "flair")})).problems
    assert "the FLAIR is negative in " in problem.sentence


@pytest.mark.parametrize("labels", [2, 4, 15])
def test_mask_given_as_a_scan_is_refused(subject, tmp_path, labels):
    segmentation = np.zeros(BRAIN.shape, np.float32)
    # The last label is a single voxel, which no sample of the voxels finds.
    for label in range(1, labels):
        segmentation.flat[label:] = label
    changed = replace(subject, images={"t1w": saved(tmp_path / "mask.nii", segmentation)})
    (problem,) = checked(changed, SETTINGS).problems
    assert f"the T1w has only {labels} distinct values, as a mask or a segmentation has" in problem.sentence


def test_scan_of_few_bits_is_accepted(subject, tmp_path):
    steps = np.floor(np.linspace(0, 15.9, BRAIN.size)).reshape(BRAIN.shape)
    coarse = replace(subject, images={"t1w": saved(tmp_path / "coarse.nii", steps)})
    assert checked(coarse, SETTINGS).problems == ()


def test_missing_program_is_reported_first():
    require_method(BrainExtractionSettings(method="command", command=f"{sys.executable} {{image}} {{mask}}"))
    settings = BrainExtractionSettings(method="command", command="/no/such/program {image} {mask}")
    sentence = "brain_extraction.command: /no/such/program cannot be started"
    with pytest.raises(UserError, match=sentence):
        require_method(settings)
    with pytest.raises(UserError, match=sentence):
        extract_brain(None, settings)


def test_missing_hdbet_is_reported_first(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="HD-BET is not installed; in your clone"):
        require_method(BrainExtractionSettings(method="hdbet"))


@pytest.mark.parametrize(
    ("name", "sidecar", "warned"),
    [
        ("sub-1_T1w.nii.gz", None, False),
        ("sub-1_ce-gadobutrol_T1w.nii.gz", None, True),
        ("sub-1_ce-none_T1w.nii.gz", None, False),
        ("sub-1_T1w.nii.gz", '{"ContrastBolusAgent": "Gadovist"}', True),
        ("sub-1_T1w.nii", '{"ContrastBolusIngredient": "GADOLINIUM"}', True),
        ("sub-1_T1w.nii.gz", '{"ContrastBolusAgent": "None"}', False),
        ("sub-1_T1w.nii.gz", "[1, 2]", False),
        ("sub-1_T1w.nii.gz", "no JSON", False),
    ],
)
def test_a_named_contrast_agent_is_a_doubt(tmp_path, name, sidecar, warned):
    if sidecar is not None:
        (tmp_path / "sub-1_T1w.json").write_text(sidecar)
    assert bool(contrast_agent_warnings(tmp_path / name)) == warned


@pytest.mark.parametrize(
    ("name", "code", "warned"),
    [
        ("sub-1_T1w.nii.gz", 1, False),
        ("sub-1_space-orig_T1w.nii.gz", 2, False),
        ("sub-1_T1w.nii.gz", 4, True),
        ("sub-1_space-MNI152NLin6Asym_T1w.nii.gz", 1, True),
    ],
)
def test_a_scan_in_template_space_is_a_doubt(tmp_path, name, code, warned):
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.float32), np.eye(4))
    image.set_sform(np.eye(4), code)
    nib.save(image, tmp_path / name)
    path = tmp_path / name
    assert bool(template_space_warnings(path, read_grid(path))) == warned
