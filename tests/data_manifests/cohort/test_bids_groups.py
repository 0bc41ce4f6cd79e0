"""BIDS datasets: when participants without a group may be treated as controls."""

import json
from pathlib import Path

import pytest
from voxout.data_manifests.cohort.bids import read_bids
from voxout.data_manifests.errors import UserError, for_terminal

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
    root = table(scans(tmp_path), header, *(f"sub-{s}\t40\t30-50\tsingle\tPrisma\tright\t" for s in IDS))
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
    root = put(scans(tmp_path, ["stroke01", "wmh2"]), "sub-wmh2/func/sub-wmh2_task-stroke_bold.nii.gz")
    put(root, "derivatives/fs/sub-wmh2/anat/sub-wmh2_dseg.nii.gz", "derivatives/fs/sub-wmh2/anat/x_lesion.json")
    assert set(groups(root).values()) == {"control"}


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


# -- outputs of voxout ----------------------------------------------------------------------------------------------
def run_of_voxout(out: Path, how: str) -> None:
    put(
        out,
        "prepared/sub-006/anat/sub-006_label-lesion_mask.nii.gz",
        "prepared/sub-001/anat/sub-001_desc-brain_mask.nii",
    )
    if how == "log":
        (out / "log.jsonl").write_text(json.dumps({"time": "2026-01-01", "message": "voxout"}) + "\n{")
    else:
        (out / "records").mkdir()
        (out / "records" / "prepare.json").write_text('{\n "stage": "prepare"\n}')
        (out / "config.yaml").write_text("seed: 0")


@pytest.mark.parametrize("how", ["log", "records"])
def test_masks_of_a_voxout_run_are_ignored(tmp_path, how):
    run_of_voxout(scans(tmp_path) / "derivatives" / "voxout", how)
    assert all((r.group, r.lesion_mask, r.brain_mask) == ("control", None, None) for r in read_bids(tmp_path))


@pytest.mark.parametrize("how", ["log", "records"])
def test_run_directly_in_derivatives_is_an_error(tmp_path, how):
    run_of_voxout(put(scans(tmp_path), MASK) / "derivatives", how)
    assert "derivatives: is the output folder of a run" in problems_of(tmp_path)[0]


def test_folder_of_another_program_is_searched(tmp_path):
    root = put(scans(tmp_path), MASK, "derivatives/manual/config.yaml", "derivatives/manual/records/a.json")
    (root / "derivatives/manual/log.jsonl").write_text('{"level": "info"}\n')
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
