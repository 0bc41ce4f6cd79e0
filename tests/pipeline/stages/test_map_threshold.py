"""The threshold in the files of a map: where it comes from, and what a change of it does."""

import json

import nibabel as nib
import numpy as np
import pytest
from voxout.data_manifests.cohort.output_paths import OutputFolder, beside
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume, read_map, read_mask
from voxout.evaluation.metrics.clusters import label_clusters
from voxout.evaluation.report.cluster_table import cluster_row
from voxout.evaluation.scoring.operating_point import StoredPoint
from voxout.pipeline.config.config import load_config
from voxout.pipeline.model.map_files import MapContext, write_clusters, write_map
from voxout.pipeline.stages import map
from voxout.pipeline.workflow.console import Console
from voxout.pipeline.workflow.engine import Engine
from voxout.pipeline.workflow.origin import Origin
from voxout.pipeline.workflow.records import StageRecord, evidence
from voxout.pipeline.workflow.replacement import Replacement
from voxout.pipeline.workflow.runner import Run

CONFIG = load_config(overrides=[])
AFFINE = np.array([[0, -1.2, 0.1, 90], [1.1, 0, 0, -100], [0, 0.1, 1.3, -70], [0, 0, 0, 1.0]])
GRID = Grid((20, 18, 16), np.where(np.abs(AFFINE) == 0.1, 0, AFFINE), 1, 1)


@pytest.fixture
def patient(tmp_path):
    (tmp_path / "t1w.nii").write_text("a scan")
    return SubjectRecord("01", "patient", {"t1w": tmp_path / "t1w.nii"})


@pytest.fixture
def z():
    return Volume(np.random.default_rng(0).normal(size=GRID.size_vox).astype(np.float32), GRID)


def of_maps(patient, z, scored):
    """Return a stage's work that writes three maps, and counts."""

    def work(subject, config, out, model, device, context, *matched):
        scored.append(context.threshold)
        write_map(out.native_map(patient), z, context)
        write_map(out.template_map(patient), z, context)
        write_map(out.native_coverage(patient), z.with_voxels(z.voxels > -1), context)
        return ("a warning",)

    return work


def test_a_changed_threshold_is_written_without_scoring_again(tmp_path, patient, z, monkeypatch):
    out, scored = OutputFolder(tmp_path / "out"), []
    monkeypatch.setattr(map, "map_subject", of_maps(patient, z, scored))

    def mapped(threshold, **more):
        inputs = {"the detectors": "abc", map._THRESHOLD: threshold} | more
        return map.write_maps(patient, inputs, Origin(), CONFIG, out, out, "cpu")

    first = mapped(3.6)
    shown = nib.nifti1.load(out.native_map(patient)).header
    assert (shown["cal_min"], shown["cal_max"]) == (np.float32(3.6), np.float32(7.2))
    again = mapped(4.5)
    assert scored == [3.6] and again.warnings == first.warnings and again.outputs.keys() == first.outputs.keys()
    for path in (out.native_map(patient), out.template_map(patient)):
        stored = nib.nifti1.load(path)
        assert stored.header["cal_min"] == np.float32(4.5) and stored.header.get_intent()[0] == "z score"
        np.testing.assert_array_equal(np.asarray(stored.dataobj), z.voxels)
        assert json.loads(beside(path, ".json").read_text())["Threshold"] == 4.5
    assert read_map(out.native_map(patient)).grid.same_as(GRID)
    np.testing.assert_array_equal(read_mask(out.native_coverage(patient)).voxels, z.voxels > -1)
    mapped(4.5, prepared="anew")
    assert scored == [3.6, 4.5], "of another scan"
    beside(out.native_map(patient), ".json").write_text("mine")
    mapped(4.0, prepared="anew")
    assert scored == [3.6, 4.5, 4.0], "changed by the user"
    assert (out.root / "set-aside").is_dir()


def test_maps_without_a_valid_threshold_have_no_range_and_say_so(tmp_path, patient, z):
    path, sidecar = write_map(OutputFolder(tmp_path).native_map(patient), z, MapContext.of_model(CONFIG, "abc", None))
    header = nib.nifti1.load(path).header
    assert (header["cal_min"], header["cal_max"]) == (0, 0) and header.get_intent()[0] == "z score"
    about = json.loads(sidecar.read_text())
    assert about["Threshold"] is None and about["ThresholdSetOn"].startswith("none")


class NoPlace:
    side, region, tissue, lobe, shares_text, flags_text = "left", None, "white matter", None, "", ""


def test_clusters_are_numbered_by_their_peak(tmp_path, patient, z):
    voxels = np.zeros(GRID.size_vox, np.float32)
    voxels[2:6, 2:5, 2:5] = 4
    voxels[12:14, 9:12, 10:13] = 4
    voxels[13, 10, 11] = 9
    voxels[18, 1, 1] = 20  # smaller than the smallest cluster
    map_ = Volume(voxels, GRID)
    clusters, labels = label_clusters(map_, 3.0, Volume(np.ones(GRID.size_vox, bool), GRID), smallest_mm3=20)
    rows = [cluster_row("sub-01", cluster, (1.0, -2.0, 3.0), NoPlace()) for cluster in clusters]
    out = OutputFolder(tmp_path)
    context = MapContext(CONFIG, "abc", 3.0, "by hand")
    image, sidecar, table = write_clusters(out.cluster_labels(patient, "native"), labels, clusters, rows, context)
    assert image.name == "sub-01_space-orig_desc-clusters_dseg.nii.gz" and image.parent == out.map_folder(patient)
    stored = nib.nifti1.load(image)
    assert np.asarray(stored.dataobj)[13, 10, 11] == 1 and np.asarray(stored.dataobj)[3, 3, 3] == 2
    assert set(np.unique(stored.dataobj)) == {0, 1, 2}
    header, *lines = table.read_text().splitlines()
    assert header.split("\t")[:5] == ["index", "name", "x_mm", "y_mm", "z_mm"]
    first = dict(zip(header.split("\t"), lines[0].split("\t"), strict=True))
    assert (first["index"], first["name"], first["region"]) == ("1", "left white matter", "n/a")
    where = [float(first[name]) for name in ("x_mm", "y_mm", "z_mm")]
    np.testing.assert_allclose(where, (GRID.affine @ [13, 10, 11, 1])[:3], rtol=1e-6)
    assert json.loads(sidecar.read_text())["ThresholdSetOn"] == "by hand"


def test_the_threshold_of_an_applied_model_is_its_own_unless_the_cohort_sets_one(tmp_path):
    out, model = OutputFolder(tmp_path / "out"), OutputFolder(tmp_path / "model")

    def threshold(*overrides):
        config = load_config(overrides=overrides)
        return map._valid_threshold(Run(Manifest(()), config, out, model, None, Engine(1), "cpu", Console()))

    assert threshold() is None
    relevant = {"false_clusters": 1.0, "smallest_cluster_mm3": 30.0, "space": "native"}
    StoredPoint(3.6, (), 4, relevant, "").save(model.operating_point)
    assert threshold() == 3.6
    assert threshold("evaluation.recalibrate=true") is None
    assert threshold("evaluation.false_clusters=2") is None
    StoredPoint(float("nan"), (), 4, relevant, "").save(model.operating_point)
    assert threshold() is None


def test_the_stage_that_wrote_a_file_before_leaves_it_to_the_one_that_writes_it_now(tmp_path):
    """The threshold was an output of the stage score."""
    out = OutputFolder(tmp_path)
    point = out.operating_point
    point.parent.mkdir()
    point.write_text("before")
    found = evidence(out.root, [point])
    StageRecord("score", {}, found.sizes, hashes=found.hashes).write(out.record("score"))
    files = Replacement(out, "map", ("operating_point",), out.record("map"))
    files.begin({})
    files.built.operating_point.parent.mkdir(parents=True)
    files.built.operating_point.write_text("now")
    files.finish(StageRecord("map", {}, {}))
    assert point.read_text() == "now"
    scores = Replacement(out, "score", ("scores",), out.record("score"))
    scores.begin({})
    scores.finish(StageRecord("score", {}, {}))
    assert point.read_text() == "now" and not (out.root / "set-aside").exists()


def test_a_threshold_that_no_record_lists_is_not_replaced(tmp_path):
    out = OutputFolder(tmp_path)
    out.operating_point.parent.mkdir()
    out.operating_point.write_text("mine")
    with pytest.raises(UserError, match="which no record of voxout lists"):
        Replacement(out, "map", ("operating_point",), out.record("map")).begin({})
