"""BIDS datasets: when participants without a group may be treated as controls."""

from pathlib import Path

import pytest
from voxout.data_manifests.cohort.bids import read_bids
from voxout.data_manifests.errors import UserError, for_terminal
from voxout.pipeline.config.config import Config, save_config
from voxout.pipeline.workflow.records import StageRecord, versions

from ..as_another import folder_of_another

IDS = ["001", "002", "003", "004", "005", "006"]
MASK = "derivatives/manual/sub-006/anat/sub-006_label-lesion_mask.nii.gz"


def put(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def scans(root: Path, ids=IDS, session: str | None = None) -> Path:
    place = f"ses-{session}/" if session else ""
    label = f"_ses-{session}" if session else ""
    return put(root, *(f"sub-{s}/{place}anat/sub-{s}{label}_T1w.nii.gz" for s in ids))


def table(root: Path, *rows: str) -> Path:
    (root / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def problems_of(root: Path) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        read_bids(root)
    return tuple(map(for_terminal, caught.value.problems))


def groups(root: Path) -> dict[str, str]:
    return {record.subject_id: record.group for record in read_bids(root)}


# -- the table -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("row_of", "folder"),
    [
        (str, "001"),
        (lambda n: f"sub-{n}", "001"),
        (lambda n: f"{n}.0", "001"),
        (lambda n: f"SUB-{n:03}", "001"),
        (lambda n: f"site{n:03}", "001"),
    ],
)
@pytest.mark.parametrize("header", ["participant_id\tage\tgroup", "participant_id\tage"])
def test_rows_without_a_matching_folder(tmp_path, row_of, folder, header):
    cells = "\t40\tpatient" if "group" in header else "\t40"
    (problem,) = problems_of(table(scans(tmp_path), header, *(row_of(n) + cells for n in range(1, 7))))
    assert all(f"sub-{s} (likely row sub-" in problem for s in IDS), "all participants are listed with the likely match"
    assert problem.count("(likely folder sub-00") == 6


def test_labels_that_differ_in_case(tmp_path):
    root = table(scans(tmp_path, ["001", "PT01"]), "participant_id\tgroup", "sub-001\tcontrol", "sub-pt01\tpatient")
    (problem,) = problems_of(root)
    assert problem.startswith(
        "participants.tsv: no row for sub-PT01 (likely row sub-pt01); no folder for the rows sub-pt01"
    )
    assert "sub-001" not in problem


def test_parts_of_a_number_do_not_match(tmp_path):
    (problem,) = problems_of(table(scans(tmp_path, ["16"]), "participant_id\tgroup", "6\tpatient"))
    assert "likely" not in problem and "no row for sub-16; no folder for the rows sub-6." in problem


def test_missing_row_or_group(tmp_path):
    root = table(scans(tmp_path, IDS[:3]), "participant_id\tgroup", "sub-001\tcontrol", "sub-002\tn/a")
    first, second = problems_of(root)
    assert first.startswith("participants.tsv: no row for sub-003. Their groups are unknown.")
    assert second == "participants.tsv: no group for sub-002, expected control or patient. Fill it in."


def test_possible_lesions_are_only_noted_if_all_groups_are_known(tmp_path):
    rows = ["participant_id\tgroup\tdiagnosis", "sub-001\tcontrol\tnone", "sub-002\tpatient\tMS", "sub-9\tpatient\tMS"]
    root = put(table(scans(tmp_path, IDS[:2]), *rows), "derivatives/lst/sub-009_lesion.nii.gz")
    manifest = read_bids(root)
    assert [record.group for record in manifest] == ["control", "patient"]
    assert "in participants.tsv, but without scans: sub-9." in manifest.notes
    assert any("possible lesion images not used" in n and "sub-009_lesion.nii.gz" in n for n in manifest.notes)


@pytest.mark.parametrize(
    "column",
    ["diagnosis", "Dx", "patient", "health_status", "status", "cohort", "condition", "study group", "disease", "arm"],
)
def test_group_column_with_another_name(tmp_path, column):
    root = table(scans(tmp_path), f"participant_id\t{column}", *(f"sub-{s}\t{s > '005'}" for s in IDS))
    (problem,) = problems_of(root)
    assert f"column {column.lower()} may contain the group, but there is no column group" in problem
    assert "Rename it to group, with control or patient in every row." in problem
    assert all(f"sub-{s}" in problem for s in IDS)


def test_group_column_is_recognised_by_its_cells(tmp_path):
    root = table(scans(tmp_path, IDS[:2]), "participant_id\tGruppe", "sub-001\tKontrolle", "sub-002\tPatient")
    assert "column gruppe may contain the group" in problems_of(root)[0]


def test_unrelated_columns(tmp_path):
    header = "participant_id\tage\tage_group\tmarital_status\tscanner_type\thandedness\tempty_diagnosis"
    header += "\teducation_years\tschool_grade\tbmi\tte_ms\treaction_time_ms\tepilepsy\tstroke\tms\tethnicity\tmmse"
    row = "40\t30-50\tsingle\tPrisma\tright\t\t12\t5\t22.1\t3.1\t300\tno\tn/a\t0\tx\t30"
    root = table(scans(tmp_path), header, *(f"sub-{s}\t{row}" for s in IDS))
    (root / "phenotype").mkdir()
    (root / "phenotype" / "questionnaire.tsv").write_text("participant_id\tsleep\tseizures\nsub-001\t8\tno\n")
    (root / "sub-001" / "sub-001_sessions.tsv").write_text("session_id\tacq_time\nses-1\t2020-01-01T00:00:00\n")
    assert set(groups(root).values()) == {"control"}


@pytest.mark.parametrize("content", ["/annex/objects/MD5E-s9--0.tsv\n", "version https://git-lfs.github.com/spec/v1\n"])
def test_table_that_was_not_fetched(tmp_path, content):
    scans(tmp_path)
    assert "Fetch it" in problems_of(table(tmp_path, content))[0]
    (tmp_path / "participants.tsv").unlink()
    (tmp_path / "participants.tsv").symlink_to(".git/annex/objects/aa/bb/MD5E-s99--0.tsv/MD5E-s99--0.tsv")
    assert "participants.tsv: a link (pointer) to content that is not on this machine" in problems_of(tmp_path)[0]


@pytest.mark.parametrize("content", ["", "\n", '"participant_id\tgroup\nsub-001\tpatient\n', "participant_id,group\n"])
def test_invalid_table(tmp_path, content):
    scans(tmp_path)
    (tmp_path / "participants.tsv").write_text(content)
    assert "Save it again." in problems_of(tmp_path)[0] or "participant_id is missing" in problems_of(tmp_path)[0]


@pytest.mark.parametrize("name", ["participants.csv", "participants.xlsx", "Participants.TSV"])
def test_table_with_another_name(tmp_path, name):
    (problem,) = problems_of(put(scans(tmp_path), name, "participants.json"))
    assert problem.startswith(f"{name}: found instead of participants.tsv") and "sub-006" in problem


def test_rows_with_more_cells_than_columns(tmp_path):
    root = table(scans(tmp_path, ["001"]), "participant_id\tgroup", "sub-001\tcontrol\tx", "\t", "\tcontrol")
    assert problems_of(root) == (
        "participants.tsv row 2: found 3 cells, expected 2. Separate cells by one tab.",
        "participants.tsv row 4: participant_id is empty. Fill it in.",
    )


@pytest.mark.parametrize("column", ["tumor_grade", "ms_subtype", "edss", "epilepsy", "Tumour", "stroke", "MS"])
def test_columns_about_a_disease(tmp_path, column):
    root = table(scans(tmp_path), f"participant_id\t{column}", *(f"sub-{s}\t{'n/a' if s < '005' else 2}" for s in IDS))
    (problem,) = problems_of(root)
    assert f"column {column.lower()} may contain the group, but there is no column group" in problem


@pytest.mark.parametrize(
    ("file", "header", "hint"),
    [
        ("phenotype/diagnosis.tsv", "participant_id\tcode", "phenotype/diagnosis.tsv"),
        ("phenotype/clinic.tsv", "participant_id\tgroup", "column group of phenotype/clinic.tsv"),
        ("sub-006/sub-006_sessions.tsv", "session_id\tdiagnosis", "column diagnosis of sub-006/sub-006_sessions.tsv"),
        ("sessions.tsv", "participant_id\tedss", "column edss of sessions.tsv"),
    ],
)
def test_other_tables_may_contain_the_group(tmp_path, file, header, hint):
    path = put(scans(tmp_path), file) / file
    path.write_text(f"{header}\nsub-006\tX1\n")
    (problem,) = problems_of(tmp_path)
    assert problem.startswith(f"{hint}: may contain the group, so the groups of sub-001")
    rows = [f"sub-{s}\t{'patient' if s == '006' else 'control'}" for s in IDS]
    assert groups(table(tmp_path, "participant_id\tgroup", *rows))["006"] == "patient"


@pytest.mark.parametrize("label", ["patient001", "PAT01", "ms07", "SiteMS07", "tumour3", "stroke01", "lesion2", "GBM5"])
def test_ids_that_speak_of_patients(tmp_path, label):
    (problem,) = problems_of(scans(tmp_path, ["001", label]))
    assert problem.startswith(f"sub-{label}: the id speaks of a patient, but there is no group")
    assert "sub-001" in problem and problem.endswith("in column group of participants.tsv.")


def test_ids_of_plain_cohorts(tmp_path):
    labels = ["control01", "IXI002", "pilot1", "P01", "OAS30001", "Adam1", "msmall", "CC110033", "NDARAA306NT2", "CON5"]
    labels.remove("P01")
    assert set(groups(scans(tmp_path, labels)).values()) == {"control"}
    assert set(groups(scans(tmp_path / "p", ["P01", "P02"])).values()) == {"control"}
    assert problems_of(scans(tmp_path / "c", ["P01", "C01"]))[0].startswith("sub-P01: the id speaks of a patient")


# -- masks -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "mask",
    [
        MASK.replace("_mask", "_dseg"),
        MASK.replace("_mask", "_roi"),
        MASK.replace("manual", "study/manual"),
        MASK.replace("manual", "study/2020/manual"),
        MASK.replace("label-lesion", "label-L"),
    ],
)
def test_lesion_masks_with_other_valid_names(tmp_path, mask):
    manifest = read_bids(put(scans(tmp_path), mask))
    assert manifest["sub-006"].lesion_mask == tmp_path / mask
    assert [record.group for record in manifest] == ["control"] * 5 + ["patient"]


@pytest.mark.parametrize("linked", ["derivatives", "derivatives/manual", "derivatives/manual/sub-006/anat"])
def test_masks_in_linked_folders(tmp_path, linked):
    root = put(scans(tmp_path / "bids"), MASK)
    (root / linked).rename(tmp_path / "store")
    (root / linked).symlink_to(tmp_path / "store")
    manifest = read_bids(root)
    assert manifest["sub-006"].lesion_mask == root / MASK and manifest["sub-006"].group == "patient"


def test_mask_that_was_not_fetched_stays_in_the_manifest(tmp_path):
    root = put(scans(tmp_path), MASK)
    (root / MASK).unlink()
    (root / MASK).symlink_to("../.git/annex/objects/MD5E-s9--0.nii.gz")
    assert read_bids(root)["sub-006"].lesion_mask == root / MASK


@pytest.mark.parametrize(
    ("file", "owner"),
    [
        ("derivatives/lst/sub-006/anat/sub-006_desc-lesion_probseg.nii.gz", "of sub-006"),
        ("derivatives/lst/sub-006/anat/sub-006_lesion.nii.gz", "of sub-006"),
        ("derivatives/lesions/sub-006/anat/sub-006_mask.nii.gz", "of sub-006"),
        ("sub-006/anat/sub-006_T1w_tumour.nii", "of sub-006"),
        ("sourcedata/sub-006/WMH.mgz", "of sub-006"),
        ("derivatives/manual/sub-6/anat/sub-6_label-lesion_mask.nii.gz", "(likely of sub-006)"),
        ("derivatives/lesions/006.nii.gz", "(likely of sub-006)"),
        ("derivatives/m/sub-006/anat/sub-006_desc-bleed_mask.nii.gz", "of sub-006"),
        ("derivatives/m/sub-006/anat/sub-006_desc-finding_mask.nii.gz", "of sub-006"),
        ("derivatives/m/sub-006/anat/sub-006_plaque.nii.gz", "of sub-006"),
        ("derivatives/m/sub-006/anat/sub-006_T1w_label.nii.gz", "of sub-006"),
        ("derivatives/m/sub-006/sub-006_label-X_dseg.nii.gz", "of sub-006"),
        ("sub-006/anat/sub-006_seg.nii.gz", "of sub-006"),
        ("derivatives/m/sub-077/anat/sub-077_label-WMH_mask.nii.gz", "(of a participant without scans)"),
    ],
)
def test_possible_lesions_that_cannot_be_used_are_an_error(tmp_path, file, owner):
    (problem,) = problems_of(put(scans(tmp_path), file))
    assert f"{file} {owner}" in problem and "a possible lesion image cannot be used" in problem
    assert all(f"sub-{s}" in problem for s in IDS), "all participants with unknown group are listed"


def test_lesion_mask_of_a_dwi_scan_is_not_used_but_makes_a_patient(tmp_path):
    mask = "derivatives/m/sub-006/dwi/sub-006_label-lesion_mask.nii.gz"
    manifest = read_bids(put(scans(tmp_path), mask))
    assert manifest["sub-006"].group == "patient" and manifest["sub-006"].lesion_mask is None
    assert any("masks not used" in note and "sub-006_label-lesion_mask" in note for note in manifest.notes)


def test_subject_and_task_labels_are_not_signs_of_lesions(tmp_path):
    """Whose ids are signs of patients, but no file of theirs is the image of a lesion."""
    root = put(scans(tmp_path, ["stroke01", "01"]), "sub-01/func/sub-01_task-stroke_bold.nii.gz")
    put(root, "derivatives/fs/sub-stroke01/anat/sub-stroke01_dseg.nii.gz", "derivatives/fs/x_lesion.json")
    (problem,) = problems_of(root)
    assert problem.startswith("sub-stroke01: the id speaks of a patient, but there is no group")
    (root / "sub-stroke01").rename(tmp_path / "elsewhere")
    assert groups(root) == {"01": "control"}


def test_masks_without_a_session(tmp_path):
    brain = "derivatives/fmriprep/sub-006/anat/sub-006_desc-brain_mask.nii.gz"
    root = put(scans(tmp_path, session="1"), MASK, brain)
    record = read_bids(root)["sub-006_ses-1"]
    assert (record.group, record.lesion_mask, record.brain_mask) == ("patient", root / MASK, root / brain)
    manifest = read_bids(scans(root, ["006"], session="2"))
    assert [r.group for r in manifest if r.subject_id == "006"] == ["patient", "patient"]
    assert all(r.lesion_mask is r.brain_mask is None for r in manifest)
    assert any(
        "do not match exactly one scan" in n and Path(MASK).name in n and Path(brain).name in n for n in manifest.notes
    )


def test_masks_of_the_anatomy_are_no_signs_of_patients(tmp_path):
    names = ["label-GM_probseg", "dseg", "desc-aseg_dseg", "desc-aparcaseg_dseg", "desc-ribbon_mask", "T1w_brain_mask"]
    names += ["T1w_brain_seg", "label-WM_mask", "label-CSF_mask", "hemi-L_desc-cortex_mask", "space-T1w_mask", "mask"]
    root = put(scans(tmp_path), *(f"derivatives/fmriprep/sub-001/anat/sub-001_{name}.nii.gz" for name in names))
    put(root, "derivatives/fs/sub-001/mri/aparc+aseg.mgz", "derivatives/fs/sub-001/mri/wm.seg.mgz")
    put(root, "derivatives/x/sub-001/func/sub-001_task-rest_desc-motor_mask.nii.gz")
    assert set(groups(root).values()) == {"control"}


# -- outputs of voxout ----------------------------------------------------------------------------------------------
def run_of_voxout(out: Path, how: str) -> None:
    """Write the outputs of a run that ended in its first stage (no record), or whose settings were deleted."""
    put(
        out,
        "prepared/sub-006/anat/sub-006_label-lesion_mask.nii.gz",
        "prepared/sub-001/anat/sub-001_desc-brain_mask.nii",
    )
    if how == "settings":
        save_config(out / "config.yaml", Config())
    else:
        StageRecord("prepare", {}, {}, versions=versions()).write(out / "records" / "prepare.json")


@pytest.mark.parametrize("how", ["settings", "records"])
def test_masks_of_a_voxout_run_are_ignored(tmp_path, how):
    run_of_voxout(scans(tmp_path) / "derivatives" / "voxout", how)
    manifest = read_bids(tmp_path)
    assert all((r.group, r.lesion_mask, r.brain_mask) == ("control", None, None) for r in manifest)
    note = "output folders of voxout, in which no masks are searched: derivatives/voxout."
    assert note in map(for_terminal, manifest.notes)


@pytest.mark.parametrize("how", ["settings", "records"])
def test_run_directly_in_derivatives_is_an_error(tmp_path, how):
    run_of_voxout(put(scans(tmp_path), MASK) / "derivatives", how)
    assert "derivatives: is the output folder of a run" in problems_of(tmp_path)[0]


def test_folder_of_another_program_is_searched(tmp_path):
    """Regression: a pipeline's own log with the keys of ours hid its lesion masks."""
    root = put(scans(tmp_path), MASK, "derivatives/manual/config.yaml", "derivatives/manual/records/a.json")
    (root / "derivatives/manual/log.jsonl").write_text('{"time": "2026-01-01", "message": "segmented"}\n')
    assert groups(root)["006"] == "patient"
    (root / "derivatives/manual/config.yaml").write_text("models: 1\npreprocessing: 2\n")
    (root / "derivatives/manual/records/a.json").write_text('{"stage": "prepare", "versions": {"nibabel": "5"}}')
    assert groups(root)["006"] == "patient"


# -- unreadable folders and links -------------------------------------------------------------------------------------
@pytest.mark.parametrize("unreadable", ["derivatives", "derivatives/manual", "derivatives/manual/sub-006/anat"])
def test_folders_that_cannot_be_searched_may_contain_masks(unreadable):
    with folder_of_another() as root:
        put(scans(root), MASK)
        (root / unreadable).chmod(0)
        (problem,) = problems_of(root)
        assert problem.startswith(f"{unreadable}: cannot be searched (Permission denied) and may contain lesion masks")
        assert "sub-006" in problem
        assert ("sub-001" in problem) == ("sub-006" not in unreadable), (
            "a folder of one participant concerns only that one"
        )
        rows = [f"sub-{s}\t{'patient' if s == '006' else 'control'}" for s in IDS]
        assert len(read_bids(table(root, "participant_id\tgroup", *rows))) == 6, "no error if all groups are known"


def test_broken_links_to_folders_may_contain_masks(tmp_path):
    (scans(tmp_path) / "derivatives").mkdir()
    (tmp_path / "README").symlink_to(".git/annex/objects/aa/bb/MD5E-s9--0/MD5E-s9--0")
    assert set(groups(tmp_path).values()) == {"control"}, "git-annex links are files"
    (tmp_path / "derivatives" / "manual-1.2").symlink_to("/gone/manual")
    assert problems_of(tmp_path)[0].startswith("derivatives/manual-1.2: cannot be searched (a broken link)")


@pytest.mark.parametrize("place", ["sub-002", "sub-002/anat"])
def test_unreachable_scans_stay_in_the_manifest(place):
    with folder_of_another() as root:
        scans(root)
        (root / place).chmod(0)
        (root / "sub-004").rename(root / ".elsewhere")
        (root / "sub-004").symlink_to("/gone/sub-004")
        manifest = read_bids(root)
        assert [r.subject_id for r in manifest] == IDS
        assert manifest["sub-002"].images["t1w"] == root / "sub-002/anat/sub-002_T1w.nii.gz"
        assert "cannot be reached: sub-002 (Permission denied), sub-004 (a broken link)." in manifest.notes


def test_unreadable_table():
    with folder_of_another() as root:
        table(scans(root), "participant_id\tgroup", *(f"sub-{s}\tcontrol" for s in IDS))
        (root / "participants.tsv").chmod(0)
        assert "cannot be read (Permission denied)" in problems_of(root)[0]
        root.chmod(0)
        assert "Permission denied" in problems_of(root)[0]


def test_circular_links(tmp_path):
    root = put(scans(tmp_path), MASK)
    (root / "derivatives" / "again").symlink_to(root)
    (root / "derivatives" / "loop").symlink_to("loop")
    (root / "sub-001" / "anat" / "loop.nii.gz").symlink_to("loop.nii.gz")
    assert "derivatives/loop: cannot be searched" in problems_of(root)[0]
    (root / "derivatives" / "loop").unlink()
    assert groups(root)["006"] == "patient"


def test_participants_without_t1w_are_noted(tmp_path):
    root = put(scans(tmp_path, ["001"]), "sub-002/func/sub-002_task-rest_bold.nii.gz", "sub-003.txt")
    assert "left out, no T1w: sub-002." in read_bids(root).notes
