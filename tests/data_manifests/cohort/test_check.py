"""Checks of the files of a cohort: a broken scan excludes one subject, with a message that says what to do."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from voxout.data_manifests.cohort.bids import read_bids
from voxout.data_manifests.cohort.check import CheckResult, Problem, check_manifest
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.errors import for_terminal

SIZE = (24, 26, 22)
AFFINE = np.diag([8.0, 8.0, 8.0, 1.0])


def ball(radius: float, centre=(12, 13, 11)) -> np.ndarray:
    apart = sum((axis - c) ** 2 for axis, c in zip(np.indices(SIZE), centre, strict=True))
    return apart <= radius**2


BRAIN = ball(8)  # 1.09 litres
LESION = ball(1.5, centre=(14, 14, 12))


def saved(path: Path, voxels, affine=AFFINE, qform=1, sform=1) -> Path:
    image = nib.Nifti1Image(voxels.astype(np.uint8) if voxels.dtype == bool else voxels.astype(np.float32), affine)
    image.set_qform(affine, code=qform)
    image.set_sform(affine, code=sform)
    nib.save(image, path)
    return path


def head(seed: int) -> np.ndarray:
    noise = np.abs(np.random.default_rng(seed).normal(0, 3, SIZE))
    return noise + 100 * ball(10) - 60 * ball(2)  # with a dark cavity inside


@pytest.fixture
def cohort(tmp_path):
    """Manifest of 24 controls and 2 patients without problems."""
    records = []
    for number in range(26):
        subject_id = f"{number:02}"
        record = SubjectRecord(
            subject_id,
            "patient" if number >= 24 else "control",
            {"t1w": saved(tmp_path / f"{subject_id}_T1w.nii", head(number))},
            brain_mask=saved(tmp_path / f"{subject_id}_brain.nii", BRAIN),
            lesion_mask=saved(tmp_path / f"{subject_id}_lesion.nii", LESION) if number >= 24 else None,
        )
        records.append(record)
    return Manifest(tuple(records))


def check(manifest, **options) -> CheckResult:
    return check_manifest(manifest, **({"modalities": ["t1w"]} | options))


def messages(problems) -> list[str]:
    return [for_terminal(problem.sentence) for problem in problems]


def only_problem(manifest: Manifest, key: str = "sub-24", **options) -> str:
    """Return the message of the only problem; all other subjects must be good."""
    result = check(manifest, **options)
    (problem,) = result.problems
    assert problem.subject_key == key and problem.sentence.startswith(f"{key}: ")
    assert result.good == tuple(r.key for r in manifest if r.key != key)
    return problem.sentence.removeprefix(f"{key}: ")


def changed(manifest: Manifest, key: str, **fields) -> Manifest:
    return Manifest(tuple(replace(r, **fields) if r.key == key else r for r in manifest))


def test_cohort_without_problems(cohort):
    calls = []
    result = check(cohort, progress=lambda *call: calls.append(call))
    assert result.problems == result.warnings == ()
    assert result.good == tuple(r.key for r in cohort)
    assert calls[0] == (1, 26, "sub-00") and calls[-1] == (26, 26, "sub-25") and len(calls) == 26


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _nan(path: Path) -> None:
    voxels = head(0)
    voxels[0, 0, 0] = np.nan
    saved(path, voxels)


def _wrong_code(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[254] = 77  # sform_code
    path.write_bytes(content)


def _flipped(path: Path) -> None:
    image = nib.Nifti1Image(head(0).astype(np.float32), AFFINE)
    image.set_qform(AFFINE, code=1)
    image.set_sform(AFFINE @ np.diag([-1.0, 1, 1, 1]), code=1)
    nib.save(image, path)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (Path.unlink, "no such file, expected an image file (.nii, .nii.gz or .mgz). Check the path."),
        (_truncate, "is truncated or damaged, expected a complete file."),
        (_nan, "are NaN or infinite, expected finite intensities."),
        (_wrong_code, "expected codes from 0 to 5: left and right are unknown."),
        (_flipped, "contradict each other, expected one geometry."),
        (lambda path: saved(path, np.zeros(SIZE)), "every voxel is 0, expected a scan."),
        (lambda path: path.write_text("hello"), "expected NIfTI (.nii, .nii.gz) or MGZ."),
    ],
)
@pytest.mark.parametrize("key", ["sub-03", "sub-24"])
def test_broken_scan_excludes_one_subject(cohort, damage, sentence, key):
    damage(cohort[key].images["t1w"])
    assert sentence in only_problem(cohort, key)


def test_all_broken_subjects_are_reported(cohort):
    _truncate(cohort["sub-01"].images["t1w"])
    cohort["sub-02"].brain_mask.unlink()
    _nan(cohort["sub-25"].images["t1w"])
    assert [p.subject_key for p in check(cohort).problems] == ["sub-01", "sub-02", "sub-25"]


# -- modalities ------------------------------------------------------------------------------------------------------
def test_missing_modality(cohort, tmp_path):
    assert len(check(cohort, modalities=["t1w", "flair"]).good) == 0
    flairs = {r.key: saved(tmp_path / f"{r.key}_FLAIR.nii", head(100 + n)) for n, r in enumerate(cohort)}
    two = Manifest(tuple(replace(r, images={**r.images, "flair": flairs[r.key]}) for r in cohort))
    assert check(two, modalities=["t1w", "flair"]).problems == ()
    assert only_problem(
        changed(two, "sub-05", images=cohort["sub-05"].images), "sub-05", modalities=["t1w", "flair"]
    ) == (
        "has no FLAIR, expected one (required by preprocessing.modalities). Add it in column flair, or remove flair "
        "from the settings."
    )
    flairs["sub-06"].unlink()
    assert "no such file" in only_problem(two, "sub-06", modalities=["t1w", "flair"])


# -- brain masks -----------------------------------------------------------------------------------------------------
def test_brain_mask_on_another_grid(cohort):
    saved(cohort["sub-24"].brain_mask, BRAIN[:, :, 2:])
    assert only_problem(cohort) == (
        "brain mask and T1w have different grids (24x26x20 voxels of 8x8x8 mm, RAS and 24x26x22 voxels of 8x8x8 mm, "
        "RAS), expected the same grid. Resample the mask to the T1w with nearest-neighbour interpolation."
    )


def test_lesion_mask_drawn_on_the_flair(cohort, tmp_path):
    record = cohort["sub-24"]
    affine = AFFINE @ np.diag([0.5, 1.0, 1.0, 1.0])
    flair = saved(tmp_path / "flair.nii.gz", head(99), affine=affine)
    saved(record.lesion_mask, LESION, affine=affine)
    images = {**record.images, "flair": flair}
    message = only_problem(changed(cohort, "sub-24", images=images))
    assert "lesion mask and T1w have different grids" in message
    assert message.endswith("If it was drawn on another image, give that image in column mask_of.")
    assert "sub-24" in check(changed(cohort, "sub-24", images=images, mask_of="flair")).good


def test_flipped_mask_has_another_grid(cohort):
    saved(cohort["sub-24"].lesion_mask, LESION, affine=AFFINE @ np.diag([-1.0, 1, 1, 1]))
    assert "lesion mask and T1w have different grids" in only_problem(cohort)


def test_problems_of_the_additional_check(cohort):
    calls = []

    def judge(record, scans, brain):
        calls.append((record.key, sorted(scans), brain is not None and int(brain.voxels.sum())))
        return ["is invalid."] if record.key == "sub-24" else []

    assert only_problem(cohort, judge=judge) == "is invalid."
    assert calls == [(record.key, ["t1w"], int(BRAIN.sum())) for record in cohort]


def test_brain_mask_with_labels(cohort):
    saved(cohort["sub-24"].brain_mask, BRAIN.astype(float) + LESION)
    assert "found the values 0, 1, 2, expected a mask of 0 and 1. Threshold it first." in only_problem(cohort)


# -- lesion masks ----------------------------------------------------------------------------------------------------
def test_empty_lesion_mask_of_a_patient(cohort):
    saved(cohort["sub-24"].lesion_mask, np.zeros(SIZE, bool))
    assert only_problem(cohort) == (
        "the lesion mask is empty, expected a lesion. Correct it, or leave column lesion_mask empty: the map is then "
        "not evaluated."
    )


def test_control_with_a_lesion_mask(cohort, tmp_path):
    empty, full = saved(tmp_path / "e.nii", LESION & False), saved(tmp_path / "f.nii", LESION)
    assert check(changed(cohort, "sub-03", lesion_mask=empty)).warnings == ()
    result = check(changed(cohort, "sub-03", lesion_mask=full))
    assert messages(result.problems) == [
        "sub-03: is a control with a non-empty lesion mask, expected healthy controls. Change its group to patient, or "
        "leave column lesion_mask empty."
    ]


@pytest.mark.parametrize("with_brain", [True, False])
def test_lesion_outside_the_head(cohort, with_brain):
    saved(cohort["sub-24"].lesion_mask, ball(1.5, centre=(2, 2, 2)))
    manifest = cohort if with_brain else changed(cohort, "sub-24", brain_mask=None)
    assert only_problem(manifest) == (
        "only 0% of the lesion mask is inside the head, expected all of it. Check that the mask belongs to this scan "
        "and is not flipped."
    )


@pytest.mark.parametrize("with_brain", [True, False])
def test_dark_cavity_counts_as_inside_the_head(cohort, with_brain):
    saved(cohort["sub-24"].lesion_mask, ball(2))
    manifest = cohort if with_brain else changed(cohort, "sub-24", brain_mask=None)
    assert check(manifest).problems == ()


def test_inverted_lesion_mask(cohort):
    saved(cohort["sub-24"].lesion_mask, ball(9.5) & ~LESION)
    assert only_problem(cohort) == ("the lesion mask covers more than half of the head. Check whether it is inverted.")


def test_patients_without_lesion_mask_are_counted(cohort):
    result = check(changed(cohort, "sub-24", lesion_mask=None))
    assert [(w.subject_key, w.sentence) for w in result.warnings] == [
        ("", "1 patient has no lesion mask: it is mapped, but the map is not evaluated.")
    ]
    assert len(result.good) == 26


def test_a_model_is_applied_to_patients_without_lesion_masks_and_no_warning(cohort):
    patient = Manifest((replace(cohort["sub-24"], lesion_mask=None),))
    assert check(patient, fewest_controls=0).warnings == ()


# -- warnings -------------------------------------------------------------------------------------------------------
def test_scan_without_orientation(cohort):
    path = cohort["sub-03"].images["t1w"]
    saved(path, head(3), qform=0, sform=0)
    manifest = changed(cohort, "sub-03", brain_mask=None)
    assert messages(check(manifest).warnings) == [
        "sub-03: 03_T1w.nii has no orientation (the form codes, or goodRASFlag of MGZ, are 0): 24x26x22 voxels of "
        "8x8x8 mm, LAS are assumed. Check left and right and the voxel size in its map."
    ]


def test_qform_shifted_relative_to_the_sform(cohort):
    image = nib.load(cohort["sub-03"].images["t1w"], mmap=False)
    moved = AFFINE.copy()
    moved[2, 3] = 12
    image.set_sform(moved, code=2)
    nib.save(image, cohort["sub-03"].images["t1w"])
    result = check(changed(cohort, "sub-03", brain_mask=None))
    assert messages(result.warnings) == [
        "sub-03: the qform of 03_T1w.nii is rotated or shifted relative to its sform: the sform is used."
    ]
    assert result.problems == ()


def test_same_scan_for_two_subjects(cohort):
    saved(cohort["sub-09"].images["t1w"], head(4))
    assert messages(check(cohort).warnings) == [
        "sub-09: 09_T1w.nii has the same voxels as a scan of sub-04. Keep one of the two."
    ]


def test_same_scan_in_both_groups(cohort, tmp_path):
    """Regression: a scan was a control and, through a link, a patient, with a warning only."""
    link = tmp_path / "link.nii"
    link.symlink_to(cohort["sub-04"].images["t1w"])
    saved(cohort["sub-09"].images["t1w"], head(4))
    result = check(changed(cohort, "sub-24", images={"t1w": link}))
    assert messages(result.problems) == [
        f"{key}: {name} of a {group} has the same voxels as a scan of {others} in the other group, expected each scan "
        "in one group. Correct the file or the group."
        for key, name, group, others in (
            ("sub-04", "04_T1w.nii", "control", "sub-24"),
            ("sub-09", "09_T1w.nii", "control", "sub-24"),
            ("sub-24", "link.nii", "patient", "sub-04, sub-09"),
        )
    ]
    assert not {"sub-04", "sub-09", "sub-24"} & set(result.good)


def test_mgz_without_orientation(cohort, tmp_path):
    path = tmp_path / "scan.mgh"
    nib.save(nib.MGHImage(head(3).astype(np.float32), AFFINE), path)
    content = path.read_bytes()
    path.write_bytes(content[:28] + b"\0\0" + content[30:])  # goodRASFlag
    result = check(changed(cohort, "sub-03", images={"t1w": path}, brain_mask=None))
    (warning,) = messages(result.warnings)
    assert warning.startswith("sub-03: scan.mgh has no orientation") and "24x26x22 voxels of 1x1x1 mm, LSP" in warning


# -- the cohort ------------------------------------------------------------------------------------------------------
def test_too_few_controls(cohort):
    manifest = Manifest(cohort.records[:4] + cohort.records[24:])
    assert check(manifest).problems == ()
    assert messages(check(manifest).warnings) == ["only 4 controls: maps are more stable with 20 or more."]
    _truncate(cohort["sub-00"].images["t1w"])
    result = check(manifest)
    assert [p.subject_key for p in result.problems] == ["sub-00", ""]
    assert result.problems[-1].sentence == (
        "3 controls can be used, expected at least 4 (20 or more recommended). Add healthy scans, or fix the listed "
        "problems."
    )
    assert [p.subject_key for p in check(manifest, fewest_controls=0).problems] == ["sub-00"]


def test_trained_model_needs_no_controls(cohort):
    result = check(Manifest(cohort.patients), fewest_controls=0)
    assert result.problems == result.warnings == ()


# -- real scans ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("folder", ["ixi", "wmh", "ms", "tumour"])
def test_real_cohorts_have_no_problems(shared_data, folder):
    modalities = ["t1w"] if folder == "ixi" else ["t1w", "flair"]
    result = check_manifest(read_bids(shared_data / folder), modalities=modalities, fewest_controls=0)
    assert result.problems == () and result.warnings == ()


def test_equal_messages_of_several_subjects_are_merged():
    problems = (
        Problem("sub-1", "sub-1: has no FLAIR."),
        Problem("sub-1", "sub-1: has no T2w."),
        Problem("sub-2", "sub-2: has no FLAIR."),
        Problem("sub-2", "sub-2: its mask is empty."),
        Problem("sub-3", "sub-3: has no T2w."),
        Problem("sub-3", "sub-3: has no FLAIR."),
        Problem("sub-3", "sub-3: has no FLAIR."),
        Problem("", "0 controls can be used."),
    )
    shared = "all 3 subjects: has no FLAIR."
    rest = "sub-1, sub-3: has no T2w.", "sub-2: its mask is empty.", "0 controls can be used."
    assert CheckResult(problems, (), ()).sentences == (shared, *rest)
    assert CheckResult(problems, (), ("sub-4",)).sentences == (
        shared.replace("all 3 subjects", "sub-1, sub-2, sub-3"),
        *rest,
    )
    assert CheckResult(problems[:2], (), ()).sentences == ("sub-1: has no FLAIR.", "sub-1: has no T2w.")
