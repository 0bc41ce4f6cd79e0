"""Matching of files by subject id: links, unreadable folders and special names."""

import os
from pathlib import Path

import pytest
from voxout.data_manifests.cohort.match_ids import files_by_id
from voxout.data_manifests.errors import UserError, for_terminal

from ..as_another import folder_of_another


def put(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(where: Path | str) -> dict[str, str]:
    root = str(where).partition("{id}")[0]
    return {name: os.path.relpath(file.path, root) for name, file in files_by_id(str(where), "--maps").items()}


def problems_of(where: Path | str) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        files_by_id(str(where), "--maps")
    return tuple(map(for_terminal, caught.value.problems))


def test_linked_folders_are_searched(tmp_path):
    put(tmp_path / "store", "deep/sub-02_map.nii.gz")
    maps = put(tmp_path / "maps", "sub-01_map.nii.gz")
    (maps / "sub-02").symlink_to(tmp_path / "store")
    assert found(maps) == {"01": "sub-01_map.nii.gz", "02": "sub-02/deep/sub-02_map.nii.gz"}


def test_circular_links_are_searched_once(tmp_path):
    maps = put(tmp_path / "maps", "a/sub-01_map.nii.gz")
    (maps / "0_again").symlink_to(maps)
    (maps / "a" / "self").symlink_to(".")
    assert found(maps) == {"01": "a/sub-01_map.nii.gz"}
    assert found(f"{maps}/{{id}}/*_map.nii.gz") == {"a": "a/sub-01_map.nii.gz"}


def test_broken_link_counts_as_the_file_of_its_id(tmp_path):
    maps = put(tmp_path / "maps", "sub-01_map.nii.gz")
    (maps / "sub-02_map.nii.gz").symlink_to("../.git/annex/objects/MD5E-s9--0.nii.gz")
    assert set(found(maps)) == set(found(f"{maps}/sub-{{id}}_map.nii.gz")) == {"01", "02"}


def test_broken_link_to_a_folder_counts_as_the_file_of_its_id(tmp_path):
    maps = put(tmp_path / "maps", "sub-01/anat/sub-01_map.nii.gz")
    (maps / "sub-02").symlink_to("/gone/sub-02")
    assert found(maps) == {"01": "sub-01/anat/sub-01_map.nii.gz", "02": "sub-02"}
    assert found(f"{maps}/{{id}}/anat/*_map.nii.gz") == {"01": "sub-01/anat/sub-01_map.nii.gz", "02": "sub-02"}
    (maps / "more").symlink_to("/gone/more")
    (problem,) = problems_of(maps)
    assert problem.startswith(f"--maps {maps}: more cannot be searched (a broken link)")


def test_permissions():
    with folder_of_another() as root:
        put(root, "maps/sub-01/sub-01_map.nii.gz", "maps/sub-02/ses-a/sub-02_map.nii.gz", "maps/site/sub-03_map.nii.gz")
        (root / "maps/sub-02/ses-a").chmod(0)
        maps = found(root / "maps")
        assert maps.pop("02_ses-a") == "sub-02/ses-a" and set(maps) == {"01", "03"}
        (root / "maps/site").chmod(0)
        assert "site cannot be searched (Permission denied)" in problems_of(root / "maps")[0]
        (root / "maps").chmod(0)
        assert "Permission denied" in problems_of(root / "maps")[0]
        assert "Permission denied" in problems_of(root / "maps" / "sub-01")[0]


def test_home_folders(tmp_path, monkeypatch):
    put(tmp_path, "maps/1.nii")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert set(found("~/maps")) == set(found("~/maps/{id}.nii")) == {"1"}
    assert problems_of("~nosuchuser/maps") == (
        "--maps ~nosuchuser/maps: no such home folder. Write the absolute path.",
    )


def test_missing_folder(tmp_path):
    assert "no such folder" in problems_of(tmp_path / "none")[0]
    assert "cannot be reached (File name too long)" in problems_of(tmp_path / ("x" * 300))[0]


def test_messages_with_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"M\xfcller")
    put(tmp_path, f"a/{name}.nii", f"b/{name}.nii")
    (problem,) = problems_of(tmp_path)
    assert "matches 2 files" in problem and problem.encode("utf-8")
