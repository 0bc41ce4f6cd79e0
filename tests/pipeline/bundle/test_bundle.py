"""MONAI bundles: MONAI's own commands run them without internet, with the maps of `voxout apply`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
import voxout
from voxout.data_manifests.cohort.manifest import read_manifest
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.volume import read_map, read_volume
from voxout.data_manifests.synthetic.phantoms import small_cohort
from voxout.pipeline.bundle.contents import CONFIGURATION, METADATA, MODEL, SCHEMA
from voxout.pipeline.bundle.export import CHECKSUMS, export_bundle, import_bundle
from voxout.pipeline.bundle.network import AnomalyNetwork
from voxout.pipeline.bundle.scans import scans_in
from voxout.pipeline.bundle.transforms import PrepareScand, SaveAnomalyMapd
from voxout.pipeline.cli.main import main

from ..small_run import SETTINGS, as_arguments

MAP = "_space-orig_desc-anomaly_zmap.nii.gz"
NO_NETWORK = ("unshare", "--map-root-user", "--net")


@pytest.fixture(scope="module")
def finished(warm_workers, tmp_path_factory):
    """A cohort, and the output folder of a complete `voxout run` on it."""
    folder = tmp_path_factory.mktemp("finished")
    cohort = small_cohort(folder / "cohort", controls=4, held_out=1, patients=2, seed=5)
    out = folder / "out"
    options = ["--preset", "fast", "--device", "cpu", "-q", *as_arguments(SETTINGS)]
    assert main(["run", str(cohort), str(out), *options]) == 0
    return cohort, out


@pytest.fixture(scope="module")
def bundle(finished, tmp_path_factory) -> Path:
    return export_bundle(finished[1], tmp_path_factory.mktemp("bundle") / "bundle", "CC BY 4.0")


@pytest.fixture
def copy(bundle, tmp_path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.fixture(scope="module")
def scans(finished, tmp_path_factory) -> Path:
    """A folder with the T1w of the two patients."""
    folder = tmp_path_factory.mktemp("scans")
    for record in read_manifest(finished[0]).patients:
        shutil.copy(record.images["t1w"], folder)
    return folder


def monai(bundle: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of `python -m monai.bundle` in the folder of a bundle, without network where that can be done."""
    isolated = shutil.which("unshare") and subprocess.run([*NO_NETWORK, "true"], check=False).returncode == 0
    command = [*(NO_NETWORK if isolated else ()), sys.executable, "-m", "monai.bundle", *words]
    return subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=False)


def run(bundle: Path, scans: Path, maps: Path) -> subprocess.CompletedProcess[str]:
    words = ("--config_file", CONFIGURATION, "--meta_file", METADATA, "--dataset_dir", str(scans))
    return monai(bundle, "run", *words, "--output_dir", str(maps), "--device", "cpu")


@pytest.mark.slow
def test_monai_runs_it_with_the_maps_of_apply(bundle, scans, tmp_path):
    there = tmp_path / "scans"
    shutil.copytree(scans, there)
    (there / "broken.nii.gz").write_text("no image")
    done = run(bundle, there, tmp_path / "maps")
    assert done.returncode == 3, done.stderr
    assert "1 of 3 scans could not be prepared" in done.stderr and "Traceback" not in done.stderr
    model = voxout.load_model(bundle / MODEL, device="cpu")
    for scan in sorted(scans.iterdir()):
        expected = model.predict(scan)
        folder = tmp_path / "maps" / expected.key
        found = read_map(folder / (expected.key + MAP))
        np.testing.assert_array_equal(found.voxels, expected.z_map.voxels)
        assert found.grid.same_as(read_volume(scan).grid)
        table = folder / f"{expected.key}_clusters.csv"
        assert table.read_text().splitlines()[0].startswith(",".join(expected.clusters.columns[:2]))
    (there / "broken.nii.gz").unlink()
    maps = {path: path.stat().st_mtime_ns for path in (tmp_path / "maps").rglob("*")}
    again = run(bundle, there, tmp_path / "maps")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "maps").rglob("*")} == maps, "they are kept"


def test_monai_verifies_it(bundle):
    done = monai(bundle, "verify_metadata", "--meta_file", METADATA, "--filepath", SCHEMA)
    assert done.returncode == 0, done.stderr
    words = ("--meta_file", METADATA, "--config_file", CONFIGURATION, "--device", "cpu")
    done = monai(bundle, "verify_net_in_out", "network_def", *words)
    assert done.returncode == 0, done.stderr


def test_the_schema_demands_what_monai_reads(bundle):
    metadata, schema = (json.loads((bundle / name).read_text()) for name in (METADATA, SCHEMA))
    jsonschema.validate(metadata, schema)
    for name in ("version", "monai_version", "pytorch_version", "numpy_version", "network_data_format"):
        with pytest.raises(jsonschema.ValidationError, match="required"):
            jsonschema.validate({key: value for key, value in metadata.items() if key != name}, schema)
    del metadata["network_data_format"]["outputs"]["pred"]["num_channels"]
    with pytest.raises(jsonschema.ValidationError, match="num_channels"):
        jsonschema.validate(metadata, schema)


def test_metadata_say_what_the_model_is(bundle):
    metadata = json.loads((bundle / METADATA).read_text())
    assert metadata["model_facts"]["to"] == "4 healthy scans"
    assert metadata["model_facts"]["licence"] == "CC BY 4.0" and "CC BY 4.0" in metadata["copyright"]
    image = metadata["network_data_format"]["inputs"]["image"]
    network = AnomalyNetwork(bundle / MODEL)
    assert image["num_channels"] == network.in_channels == len(image["channel_def"])
    assert tuple(image["spatial_shape"]) == network.model.mask.grid.size_vox
    assert "CC BY 4.0" in (bundle / "docs/README.md").read_text()


def test_transforms_and_network_compute_what_predict_computes(bundle, scans, tmp_path):
    network = AnomalyNetwork(bundle / MODEL)
    prepare, save = PrepareScand("t1w", network.model), SaveAnomalyMapd("pred", network.model, tmp_path)
    items = [prepare({"t1w": str(scan)}) for scan in sorted(scans.iterdir())]
    scores = network(torch.stack([item["image"].as_tensor() for item in items]))
    assert scores.shape == (2, 2, *network.model.mask.grid.size_vox) and scores.dtype == torch.float32
    for scan, item, own in zip(sorted(scans.iterdir()), items, scores, strict=True):
        expected = network.model.predict(scan)
        found = save.map_of(item["image"], own)
        np.testing.assert_array_equal(found.z_map.voxels, expected.z_map.voxels)
        np.testing.assert_array_equal(found.coverage.voxels, expected.coverage.voxels)
        assert found.warnings == expected.warnings and found.key == expected.key
        save({**item, "pred": own})
        assert (tmp_path / found.key / f"{found.key}{MAP}").exists()


def test_the_model_comes_out_as_it_went_in(bundle, finished, scans, tmp_path):
    assert main(["bundle", "import", str(bundle), str(tmp_path / "model")]) == 0
    scan = min(scans.iterdir())
    packed, imported = (voxout.load_model(path, device="cpu") for path in (bundle / MODEL, tmp_path / "model"))
    np.testing.assert_array_equal(imported.predict(scan).z_map.voxels, packed.predict(scan).z_map.voxels)
    whole = voxout.load_model(finished[1], device="cpu").predict(scan).z_map.voxels
    assert np.abs(imported.predict(scan).z_map.voxels - whole).max() < 0.1, "but for the packing"


def test_a_packed_model_becomes_a_bundle(bundle, tmp_path, capsys):
    packed = shutil.copy(bundle / MODEL, tmp_path / "model.voxout")
    assert main(["bundle", "export", str(packed), str(tmp_path / "again")]) == 0
    for name in (MODEL, CONFIGURATION, METADATA, SCHEMA):
        assert (tmp_path / "again" / name).read_bytes() == (bundle / name).read_bytes()
    assert main(["bundle", "export", str(packed), str(tmp_path / "third"), "--licence", "MIT"]) == 2
    assert "which has its own licence" in capsys.readouterr().err


@pytest.mark.parametrize("name", [MODEL, CONFIGURATION, METADATA, SCHEMA, "docs/README.md"])
def test_a_bundle_that_was_changed_is_refused(copy, tmp_path, name, capsys):
    with (copy / name).open("ab") as file:
        file.write(b" ")
    assert main(["bundle", "import", str(copy), str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err
    assert f"{name} was changed after the bundle was exported" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "model").exists()


def test_nothing_of_a_bundle_is_run_when_its_model_is_taken_out(copy, tmp_path):
    run_me = {"imports": [f"$open({str(tmp_path / 'ran')!r}, 'w')"]}
    (copy / CONFIGURATION).write_text(json.dumps(run_me))
    with pytest.raises(UserError, match="inference.json was changed"):
        import_bundle(copy, tmp_path / "model")
    assert not (tmp_path / "ran").exists()


def test_other_folders_are_refused(bundle, copy, tmp_path):
    with pytest.raises(UserError, match="expected the checksums of a bundle"):
        import_bundle(tmp_path, tmp_path / "model")
    with pytest.raises(UserError, match="exists and is not empty"):
        import_bundle(bundle, copy)
    with pytest.raises(UserError, match="exists and is not empty"):
        export_bundle(bundle / MODEL, copy)
    (copy / MODEL).unlink()
    with pytest.raises(UserError, match=f"{MODEL} is missing"):
        import_bundle(copy, tmp_path / "model")
    checksums = json.loads((copy / CHECKSUMS).read_text())
    checksums["files"]["../secret"] = "0" * 64
    (copy / CHECKSUMS).write_text(json.dumps(checksums))
    (copy.parent / "secret").touch()
    with pytest.raises(UserError, match="secret is missing"):
        import_bundle(copy, tmp_path / "model")


def test_scans_of_a_folder(scans, finished, tmp_path):
    keys = sorted(record.key for record in read_manifest(finished[0]).patients)
    assert sorted(scans_in(scans)) == keys
    of_bids = scans_in(finished[0].parent)
    assert set(of_bids) > set(keys) and all("brain_mask" in paths for paths in of_bids.values())
    with pytest.raises(UserError, match="found no scan"):
        scans_in(tmp_path)
    for name in ("sub-01_run-1_T1w.nii.gz", "sub-01_run-2_T1w.nii.gz"):
        shutil.copy(min(scans.iterdir()), tmp_path / name)
    with pytest.raises(UserError, match="found 2 scans of sub-01, expected one"):
        scans_in(tmp_path)
