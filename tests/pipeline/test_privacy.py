"""Names of patients in folders, files, tables and headers do not appear in any output of voxout."""

import base64
import csv
import gzip
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.errors import UserError, private
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import read_volume
from voxout.data_manifests.synthetic.phantoms import small_cohort
from voxout.pipeline.cli.main import main
from voxout.pipeline.workflow.records import write_json

from ..data_manifests.as_another import folder_of_another
from .cli.test_main import QUICK
from .planted_name import NAME, places_of_name, plant_in_header
from .tools.test_score_maps import FAST, GRID, Maps

COLUMNS = ("t1w", "flair", "brain_mask", "lesion_mask", "template_transform")


# -- the search itself -----------------------------------------------------------------------------------------------
def _as_npz(path: Path) -> None:
    np.savez_compressed(path, about=np.array(f"scan of {NAME}"))


def _as_page(path: Path) -> None:
    packed = gzip.compress(bytes(range(256)) + NAME.upper().encode())
    path.write_bytes(b'<script>volume = "' + base64.b64encode(packed) + b'"</script>')


def _as_picture(path: Path) -> None:
    words = PngImagePlugin.PngInfo()
    words.add_text("Title", f"{NAME} " * 50, zip=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path, pnginfo=words)


def _as_scan(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), path)
    plant_in_header(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("x.npz", _as_npz), ("x.html", _as_page), ("x.png", _as_picture), ("x.nii.gz", _as_scan)],
)
def test_a_name_is_found_in_packed_files(tmp_path, name, write: Callable[[Path], None]):
    write(tmp_path / name)
    assert places_of_name(tmp_path) == [name]
    (tmp_path / f"{NAME.upper()}.txt").touch()
    assert len(places_of_name(tmp_path)) == 2


# -- a cohort with the name in all places ----------------------------------------------------------------------------
def _truncate(row: dict[str, str], folder: Path) -> None:
    path = folder / row["t1w"]
    path.write_bytes(path.read_bytes()[:3000])


def _no_image(row: dict[str, str], folder: Path) -> None:
    (folder / row["t1w"]).write_bytes(f"scan of {NAME}".encode())


def _missing(row: dict[str, str], folder: Path) -> None:
    (folder / row["t1w"]).unlink()


def _not_fetched(row: dict[str, str], folder: Path) -> None:
    (folder / row["t1w"]).unlink()
    (folder / row["t1w"]).symlink_to(f".git/annex/objects/{NAME}.nii.gz")


def _a_loop(row: dict[str, str], folder: Path) -> None:
    (folder / row["t1w"]).unlink()
    (folder / row["t1w"]).symlink_to(folder / row["t1w"])


def _a_folder(row: dict[str, str], folder: Path) -> None:
    (folder / row["t1w"]).unlink()
    (folder / row["t1w"]).mkdir()


def _pointer(row: dict[str, str], folder: Path) -> None:
    (folder / row["t1w"]).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def _locked(row: dict[str, str], folder: Path) -> None:
    """The superuser can read it nevertheless; the subject then passes."""
    (folder / row["t1w"]).chmod(0)


def _mask_on_other_grid(row: dict[str, str], folder: Path) -> None:
    path = folder / row["brain_mask"]
    mask = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(mask.dataobj)[:-2], mask.affine, mask.header), path)


def _mask_with_wrong_values(row: dict[str, str], folder: Path) -> None:
    path = folder / row["lesion_mask"]
    mask = nib.load(path)
    voxels = np.asarray(mask.dataobj).copy()
    voxels[:2, 0, 0] = 7, 9
    nib.save(nib.Nifti1Image(voxels, mask.affine, mask.header), path)


def _no_transform(row: dict[str, str], folder: Path) -> None:
    row["template_transform"] = f"{NAME}_to_mni.h5"


def _bad_transform(row: dict[str, str], folder: Path) -> None:
    row["template_transform"] = f"{NAME}_xfm.mat"
    (folder / row["template_transform"]).write_text(f"transform of {NAME}")


def _not_registered(row: dict[str, str], folder: Path) -> None:
    """Fails in prepare only: the mask has the volume of a brain, but not its shape."""
    path = folder / row["brain_mask"]
    mask = nib.load(path)
    voxels = np.asarray(mask.dataobj)
    box = np.zeros_like(voxels)
    box.flat[: int(voxels.sum())] = 1
    nib.save(nib.Nifti1Image(box, mask.affine, mask.header), path)


BROKEN = {
    "control002": (_truncate, "its t1w: is truncated or damaged"),
    "control003": (_no_image, "its t1w: is not in a supported image format"),
    "control004": (_missing, "its t1w: no such file"),
    "control005": (_not_fetched, "its t1w: is a link to content that is not on this machine"),
    "control006": (_a_loop, "its t1w: is a link"),
    "control007": (_a_folder, "its t1w: is a folder"),
    "control008": (_pointer, "its t1w: is a Git LFS pointer"),
    "control009": (_mask_on_other_grid, "brain mask and T1w have different grids"),
    "control010": (_no_transform, "its template_transform: no such file"),
    "control011": (_bad_transform, "its template_transform: is not a readable transform"),
    "control012": (_not_registered, "registration failed"),
    "patient001": (_mask_with_wrong_values, "its lesion_mask: found the values"),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """Scans with the name in folders, manifest, file names and headers."""
    made = small_cohort(tmp_path_factory.mktemp("made"), controls=16, patients=2, seed=4)
    root = tmp_path_factory.mktemp("lab") / f"{NAME}, Jane" / f"scans of {NAME.lower()}"
    root.mkdir(parents=True)
    rows = list(csv.DictReader(made.open(encoding="utf-8")))
    for number, row in enumerate(rows):
        for column in COLUMNS:
            if row[column]:
                name = f"{NAME}_{number:02}/{NAME.upper()}^{number:02} {column}.nii.gz"
                (root / name).parent.mkdir(exist_ok=True)
                shutil.copy(made.parent / row[column], root / name)
                plant_in_header(root / name)
                row[column] = name
        row["remarks"] = f"called by {NAME}"
        if row["subject_id"] in BROKEN:
            BROKEN[row["subject_id"]][0](row, root)
    _locked(rows[12], root)
    manifest = root / f"{NAME}.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return manifest


def _reasons(out: Path) -> dict[str, str]:
    with (out / "failures.csv").open(newline="", encoding="utf-8") as file:
        return {row["subject"].removeprefix("sub-"): row["reason"] for row in csv.DictReader(file)}


@pytest.mark.usefixtures("warm_workers")
def test_a_name_in_folders_files_tables_and_headers_is_in_no_output(lab, tmp_path, capsys):
    out = tmp_path / NAME / "out"
    assert main(["check", str(lab), str(out), *QUICK]) == 3
    messages = capsys.readouterr()
    assert f"{NAME.upper()}^01 t1w" in messages.err, "the terminal shows the file"
    assert main(["prepare", str(lab), str(out), "--jobs", "2"]) == 3
    reasons = _reasons(out)
    for key, (_, words) in BROKEN.items():
        assert words in reasons[key], reasons[key]
    assert (out / "prepared" / "sub-control001").is_dir()
    # Again in the same folder, where messages name earlier files, too.
    main(["check", str(lab), str(out), "--set", "preprocessing.modalities=[t1w,flair]"])
    assert places_of_name(out) == []
    assert "remarks" in (out / "records" / "check.json").read_text(encoding="utf-8")


def test_a_name_in_a_bids_dataset_is_in_no_output(tmp_path, capsys):
    root = tmp_path / NAME
    root.mkdir()
    small_cohort(root / "bids", controls=5, patients=1, seed=5)
    root = (root / "bids").rename(root / f"bids of {NAME}")
    participants = (root / "participants.tsv").read_text(encoding="utf-8").splitlines()
    participants = [f"{line}\t{'name' if line.startswith('participant_id') else NAME}" for line in participants]
    (root / "participants.tsv").write_text(
        "\n".join([*participants, f"sub-gone\tcontrol\t30\tx\t{NAME}"]), encoding="utf-8"
    )
    anat = root / "sub-control001" / "anat"
    for name in (
        f"{anat}/sub-control001_acq-{NAME}_T1w.nii.gz",
        f"{root}/derivatives/manual/sub-control001/anat/sub-control001_space-{NAME}_label-lesion_mask.nii.gz",
        f"{root}/derivatives/manual/{NAME}_tumour.nii.gz",
        f"{root}/derivatives/manual/sub-{NAME}/sub-{NAME}_label-lesion_mask.nii.gz",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(anat / "sub-control001_T1w.nii.gz", name)
    (anat / "sub-control001_T1w.nii.gz").rename(anat / f"sub-control001_rec-{NAME}_T1w.nii.gz")
    scan = root / "sub-control002" / "anat" / "sub-control002_T1w.nii.gz"
    scan.rename(scan.with_name(f"sub-control002_desc-{NAME}_T1w.nii.gz"))
    scan.with_name(f"sub-control002_desc-{NAME}_T1w.nii.gz").write_bytes(b"")
    out = tmp_path / "out"
    assert main(["check", str(root), str(out), *QUICK]) == 3
    assert NAME in capsys.readouterr().err
    kept = (out / "records" / "check.json").read_text(encoding="utf-8")
    for note in (
        "masks not used because they are not in the space of a scan",
        "possible lesion images not used",
        "of several files of the same kind",
        "its t1w: is empty",
    ):
        assert note in kept
    assert places_of_name(out) == []


def test_output_of_a_site_program_is_not_kept(lab, tmp_path, capsys):
    program = tmp_path / "strip.py"
    program.write_text(f"import sys; sys.exit('no licence for {NAME}')")
    command = f"{sys.executable} {program} {{image}} {{mask}}"
    extraction = ("--set", "preprocessing.brain_extraction.method=command")
    extraction = (*extraction, "--set", f"preprocessing.brain_extraction.command={command}")
    out = tmp_path / "out"
    assert main(["check", str(lab), str(out), *QUICK, *extraction]) == 3
    assert main(["prepare", str(lab), str(out), "--jobs", "1", "--subjects", "control001", *QUICK, *extraction]) == 2
    assert f"no licence for {NAME}" in capsys.readouterr().err
    assert "ended with 1 (its error message)" in (out / "log.jsonl").read_text(encoding="utf-8")
    assert places_of_name(out) == []


def test_a_name_in_file_names_of_maps_is_in_no_score(tmp_path, capsys):
    root = tmp_path / f"{NAME}, Jane"
    maps = Maps(root, map_name=f"{{id}}_{NAME}_map.nii.gz", mask_name=f"{{id}}_lesion of {NAME}.nii.gz")
    for path in root.rglob("*.nii.gz"):
        plant_in_header(path)
    maps.map_path("a").write_bytes(maps.map_path("a").read_bytes()[:2000])
    maps.put("masks", maps.mask_name, "b", maps.truth["b"][:-2], Grid((14, 17, 18), GRID.affine))
    maps.map_path("c").unlink()
    maps.mask_path("d").unlink()
    maps.mask_path("d").symlink_to(f"{NAME}.nii.gz")
    maps.map_path("h1").write_text(f"a map of {NAME}")
    participants = root / f"{NAME}.csv"
    participants.write_text(
        f"subject_id,group,site,name\nh2,control,Lyon,{NAME}\nz9,patient,,{NAME}\n", encoding="utf-8"
    )
    out = root / "out"

    def score(*more: str) -> int:
        folders = ("--maps", root / "maps" / maps.map_name, "--masks", root / "masks" / maps.mask_name)
        named = (*folders, "--cohort", participants, "--healthy", "h*", "--out", out)
        return main(["evaluate", *map(str, named), *FAST, *more])

    maps.put("maps", maps.map_name, "e", maps.voxels["b"])
    maps.put("masks", maps.mask_name, "e", maps.truth["b"])
    assert score() == score() == 3
    assert f"{NAME}, Jane/out held earlier scores" in capsys.readouterr().err
    assert set(_reasons(out)) == {"a", "b", "c", "d", "h1"}
    assert places_of_name(out) == []


# -- removal of marked names -----------------------------------------------------------------------------------------
def test_json_on_disk_holds_no_marked_name(tmp_path):
    write_json(tmp_path / "x.json", {"why": [f"{private(NAME)}: is empty."], "n": 3})
    assert json.loads((tmp_path / "x.json").read_text()) == {"why": ["the file: is empty."], "n": 3}


def test_an_unreadable_file_is_named_by_its_role():
    with folder_of_another() as folder:
        scan = folder / f"{NAME}.nii"
        scan.touch(mode=0)
        with pytest.raises(UserError, match="cannot be opened .Permission denied") as caught:
            read_volume(scan)
    manifest = Manifest((SubjectRecord("01", "control", {"t1w": scan}),))
    messages = manifest.anonymous(f"sub-01: {caught.value}")
    assert messages.startswith("sub-01: its t1w: cannot be opened (Permission denied)") and NAME not in messages
