"""BIDS datasets: assignment of files to participants, selection of files, and notes about unused files."""

from pathlib import Path

import pytest
from voxout.data_manifests.cohort.bids import read_bids
from voxout.data_manifests.cohort.subject import Manifest
from voxout.data_manifests.errors import UserError, for_terminal


@pytest.fixture
def dataset(tmp_path):
    def make(*files: str, participants: str | None = None) -> Path:
        for name in files:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        if participants is not None:
            (tmp_path / "participants.tsv").write_text(participants, encoding="utf-8")
        return tmp_path

    return make


def problems_of(folder: Path) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        read_bids(folder)
    return tuple(map(for_terminal, caught.value.problems))


def notes_of(manifest: Manifest) -> tuple[str, ...]:
    return tuple(map(for_terminal, manifest.notes))


def test_scans_participants_and_masks(dataset):
    root = dataset(
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_FLAIR.nii.gz",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "sub-02/anat/sub-02_T1w.nii",
        "derivatives/masks/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "derivatives/masks/sub-01/func/sub-01_task-rest_desc-brain_mask.nii.gz",
        "derivatives/drawn/sub-02/anat/sub-02_label-lesion_mask.nii.gz",
        participants="participant_id\tage\tsex\tgroup\tsite\nsub-01\t38.5\tF\tControl\tnorth\nsub-02\tn/a\tM\tpatient\tn/a\n",
    )
    manifest = read_bids(root)
    one, two = manifest
    assert dict(one.images) == {
        "t1w": root / "sub-01/anat/sub-01_T1w.nii.gz",
        "flair": root / "sub-01/anat/sub-01_FLAIR.nii.gz",
    }
    assert one.brain_mask == root / "derivatives/masks/sub-01/anat/sub-01_desc-brain_mask.nii.gz"
    assert (one.group, one.age, one.sex, one.site, one.lesion_mask) == ("control", 38.5, "F", "north", None)
    assert (two.group, two.age, two.sex, two.site, two.brain_mask) == ("patient", None, "M", None, None)
    assert two.lesion_mask == root / "derivatives/drawn/sub-02/anat/sub-02_label-lesion_mask.nii.gz"
    assert manifest.notes == ()


def test_masks_are_assigned_by_session(dataset):
    manifest = read_bids(
        dataset(
            "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
            "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz",
            "derivatives/m/sub-01/ses-b/anat/sub-01_ses-b_desc-brain_mask.nii.gz",
            "derivatives/m/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        )
    )
    assert [r.key for r in manifest] == ["sub-01_ses-a", "sub-01_ses-b"]
    assert manifest["sub-01_ses-a"].brain_mask is None
    assert manifest["sub-01_ses-b"].brain_mask.name == "sub-01_ses-b_desc-brain_mask.nii.gz"


def test_first_of_several_files_is_used_with_a_note(dataset):
    manifest = read_bids(
        dataset(
            "sub-01/anat/sub-01_ce-gadolinium_T1w.nii.gz",
            "sub-01/anat/sub-01_acq-fast_run-1_T1w.nii.gz",
            "sub-01/anat/sub-01_run-10_T1w.nii.gz",
            "sub-01/anat/sub-01_run-2_T1w.nii.gz",
            participants="participant_id\tgroup\nsub-01\tcontrol\n",
        )
    )
    (record,) = manifest
    assert record.images["t1w"].name == "sub-01_run-2_T1w.nii.gz"
    assert notes_of(manifest) == ("the first of several files of the same kind is used: sub-01_run-2_T1w.nii.gz of 4.",)


def test_participants_without_group_are_patients_if_they_have_a_lesion_mask(dataset):
    manifest = read_bids(
        dataset(
            "sub-01/anat/sub-01_T1w.nii.gz",
            "sub-02/anat/sub-02_T1w.nii.gz",
            "derivatives/m/sub-02/anat/sub-02_label-WMH_mask.nii.gz",
        )
    )
    assert [r.group for r in manifest] == ["control", "patient"]
    assert manifest.notes == (
        "participants.tsv is missing: ages, sexes and sites are unknown.",
        "no group in participants.tsv, treated as control because they have no lesion mask: sub-01.",
        "no group in participants.tsv, treated as patient because they have a lesion mask: sub-02.",
    )


@pytest.mark.parametrize(
    "mask",
    [
        "derivatives/m/sub-01/ses-2/anat/sub-01_ses-2_label-lesion_mask.nii.gz",  # of the other session
        "derivatives/m/sub-01/ses-1/anat/sub-01_ses-1_space-FLAIR_label-lesion_mask.nii.gz",  # in another space
        "sub-01/ses-1/anat/sub-01_ses-1_label-L_desc-T1lesion_mask.nii.gz",  # in the folder of the scan
    ],
)
def test_participants_with_any_lesion_mask_are_patients(dataset, mask):
    root = dataset("sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", mask)
    assert [r.group for r in read_bids(root)] == ["patient", "patient"]


def test_masks_in_other_spaces_are_not_used(dataset):
    manifest = read_bids(
        dataset(
            "sub-01/anat/sub-01_T1w.nii.gz",
            "derivatives/fmriprep/sub-01/anat/sub-01_space-MNI152NLin2009cAsym_res-2_desc-brain_mask.nii.gz",
            "derivatives/fmriprep/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        )
    )
    assert manifest["sub-01"].brain_mask.name == "sub-01_desc-brain_mask.nii.gz"
    assert notes_of(manifest)[-1].startswith(
        "masks not used because they are not in the space of a scan: sub-01_space-MNI152"
    )


def test_lesion_masks_drawn_on_the_flair(dataset):
    names = [f"sub-{n}/anat/sub-{n}_T1w.nii.gz" for n in ("01", "02", "03")]
    names += [f"sub-{n}/anat/sub-{n}_FLAIR.nii.gz" for n in ("01", "03")]
    names += [f"derivatives/r/sub-{n}/anat/sub-{n}_space-FLAIR_label-WMH_mask.nii.gz" for n in ("01", "02", "03")]
    manifest = read_bids(dataset(*names, "derivatives/r/sub-03/anat/sub-03_label-lesion_mask.nii.gz"))
    drawn = {r.key: (r.mask_of, r.lesion_mask and r.lesion_mask.name) for r in manifest}
    assert drawn["sub-01"] == ("flair", "sub-01_space-FLAIR_label-WMH_mask.nii.gz")
    assert drawn["sub-02"] == ("t1w", None), "without a FLAIR the grid of its mask is unknown"
    assert drawn["sub-03"] == ("t1w", "sub-03_label-lesion_mask.nii.gz"), "the mask on the T1w grid is preferred"
    note = "masks not used because they are not in the space of a scan: sub-02_space-FLAIR_label-WMH_mask.nii.gz."
    assert note in notes_of(manifest)


def test_participants_without_t1w_or_scans(dataset):
    manifest = read_bids(
        dataset(
            "sub-01/anat/sub-01_T1w.nii.gz",
            "sub-02/anat/sub-02_FLAIR.nii.gz",
            participants="participant_id\tgroup\nsub-01\tcontrol\nsub-02\tcontrol\nsub-03\tpatient\n",
        )
    )
    assert [r.key for r in manifest] == ["sub-01"]
    assert manifest.notes == (
        "left out, no T1w: sub-02.",
        "in participants.tsv, but without scans: sub-03.",
    )


def test_all_problems_at_once(dataset):
    root = dataset(
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-0_2/anat/sub-0_2_T1w.nii.gz",
        participants="participant_id\tage\tgroup\nsub-01\t1980-03-12\t2\nsub-01\t30\tcontrol\n",
    )
    assert problems_of(root) == (
        "participants.tsv row 2: group 2 is unknown, expected control or patient. Correct it.",
        "participants.tsv row 2: age is not a number of years from 0 to 120. Write it as 38.5, or leave it empty.",
        "participants.tsv row 3: sub-01 is listed twice, expected unique ids. Delete one row.",
        "sub-0_2: its name contains characters that BIDS forbids, expected letters (A-Z) and digits. "
        "Rename it, for instance to sub-02.",
    )


def test_folder_without_a_dataset(tmp_path):
    assert problems_of(tmp_path) == (
        f"{tmp_path}: no T1w found, expected a BIDS dataset with sub-*/anat/*_T1w.nii.gz. "
        "Use the root of the dataset, or list the scans in a CSV.",
    )


def test_participants_with_commas(dataset):
    root = dataset("sub-01/anat/sub-01_T1w.nii.gz", participants="participant_id,group\nsub-01,control\n")
    assert "column participant_id is missing, expected tab-separated columns" in problems_of(root)[0]


# -- real datasets ---------------------------------------------------------------------------------------------------
def test_ixi(shared_data):
    manifest = read_bids(shared_data / "ixi")
    assert len(manifest.controls) == len(manifest) == 80
    assert all(r.brain_mask and r.brain_mask.exists() and 20 <= r.age <= 80 and r.sex for r in manifest)
    assert manifest.notes == ()


def test_ms(shared_data):
    manifest = read_bids(shared_data / "ms")
    assert [r.key for r in manifest.patients] == ["sub-ms07", "sub-ms26"] and not manifest.controls
    assert all(r.lesion_mask and set(r.images) == {"t1w", "flair"} for r in manifest)


def test_lesion_masks_on_the_flair_grid(shared_data):
    manifest = read_bids(shared_data / "wmh_unaligned")
    assert [(r.group, r.mask_of) for r in manifest] == [("patient", "flair")] * 3
    assert all(r.lesion_mask.name.endswith("_space-FLAIR_label-WMH_mask.nii.gz") for r in manifest)


@pytest.mark.parametrize("other", ["sub-A1/anat/sub-A1_T1w.nii.gz", "sub-A1/ses-2/anat/sub-A1_ses-2_T1w.nii.gz"])
def test_labels_that_differ_only_in_case(dataset, other):
    rows = "participant_id\tgroup\nsub-a1\tcontrol\nsub-A1\tpatient\n"
    root = dataset("sub-a1/anat/sub-a1_T1w.nii.gz", other, participants=rows)
    assert problems_of(root) == (
        "sub-a1 and sub-A1 differ only in case, expected unique ids. Rename the folder of one of them.",
    )


def test_scan_in_the_folder_of_another_subject_is_not_used(dataset):
    """Regression: the scan of control006 in the folder of patient001 was used as that of patient001."""
    root = dataset(
        "sub-patient001/anat/sub-control006_T1w.nii.gz",
        "sub-patient001/anat/sub-patient001_T1w.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-2_T1w.nii.gz",
        "derivatives/m/sub-patient001/anat/sub-02_desc-brain_mask.nii.gz",
        participants="participant_id\tgroup\nsub-patient001\tpatient\nsub-02\tcontrol\n",
    )
    manifest = read_bids(root)
    (record,) = manifest
    assert record.images["t1w"].name == "sub-patient001_T1w.nii.gz" and record.brain_mask is None
    assert notes_of(manifest) == (
        "left out, no T1w: sub-02_ses-1.",
        "files not used because their names give another subject or session than their folders: "
        "sub-02/ses-1/anat/sub-02_ses-2_T1w.nii.gz, sub-patient001/anat/sub-control006_T1w.nii.gz, "
        "derivatives/m/sub-patient001/anat/sub-02_desc-brain_mask.nii.gz.",
    )


def test_misplaced_files_are_named_if_they_are_all_there_is(dataset):
    first, second = problems_of(dataset("sub-01/anat/sub-02_T1w.nii.gz"))
    assert "no T1w found" in first and "sub-01/anat/sub-02_T1w.nii.gz. Rename or move them." in second


def test_misplaced_lesion_mask_leaves_the_groups_unknown(dataset):
    root = dataset(
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "derivatives/m/sub-01/anat/sub-02_label-lesion_mask.nii.gz",
    )
    (problem,) = problems_of(root)
    assert "a possible lesion image cannot be used" in problem and "which of sub-01, sub-02 are patients" in problem


def test_dataset_below_a_folder_with_the_name_of_a_subject(dataset):
    root = dataset("sub-study/sub-01/anat/sub-01_T1w.nii.gz") / "sub-study"
    assert [r.key for r in read_bids(root)] == ["sub-01"]
