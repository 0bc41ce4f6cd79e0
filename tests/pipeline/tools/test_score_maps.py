"""`voxout evaluate`: maps of any method, and errors in them."""

import csv
import json
import unicodedata

import numpy as np
import pytest
from sklearn import metrics
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume, write_volume
from voxout.evaluation.settings import EvaluationSettings
from voxout.pipeline.cli.main import main
from voxout.pipeline.tools import score_maps
from voxout.pipeline.tools.score_maps import MapFolders, match_subjects, score_folders
from voxout.pipeline.workflow.console import Console
from voxout.pipeline.workflow.records import StageRecord, sizes

GRID = Grid((16, 17, 18), np.diag([2.0, 2.0, 2.0, 1.0]))
FAST = ["--set", "evaluation.bootstrap_draws=50", "--set", "evaluation.false_clusters=2"]


@pytest.fixture(autouse=True)
def no_page(request, monkeypatch):
    """Leave out the page, which takes longer than the scores, and has tests of its own (`test_score_page`)."""
    if "page" not in request.node.name:
        monkeypatch.setattr(score_maps, "write_score_page", lambda *_: None)


class Maps:
    """A folder of maps and masks of three healthy subjects and four patients, with configurable file names."""

    def __init__(self, root, *, map_name="{id}.nii.gz", mask_name="{id}.nii.gz", ids=("h1", "h2", "h3", *"abcd")):
        self.root, self.map_name, self.mask_name = root, map_name, mask_name
        self.voxels, self.truth = {}, {}
        inside = np.zeros(GRID.size_vox, bool)
        inside[2:14, 2:15, 2:16] = True
        self.inside = inside
        for number, name in enumerate(ids):
            random = np.random.default_rng(number)
            lesion = np.zeros(GRID.size_vox, bool)
            if not name.startswith("h"):
                lesion[4:7, 5:8, 4 : 7 + number] = True
            voxels = random.standard_normal(GRID.size_vox).astype(np.float32) + 2 * lesion
            self.voxels[name], self.truth[name] = voxels.astype(np.float32), lesion
            self.put("maps", map_name, name, self.voxels[name])
            self.put("brains", mask_name, name, inside)
            if lesion.any():
                self.put("masks", mask_name, name, lesion)

    def path(self, folder, pattern, name):
        return self.root / folder / pattern.replace("{id}", name)

    def put(self, folder, pattern, name, voxels, grid=GRID):
        write_volume(self.path(folder, pattern, name), Volume(voxels, grid))

    def map_path(self, name):
        return self.path("maps", self.map_name, name)

    def mask_path(self, name):
        return self.path("masks", self.mask_name, name)

    def score(self, *more, maps="maps", masks="masks", brains="brains", healthy=("h*",), out="out"):
        command = ["evaluate", "--maps", self.root / maps, "--masks", self.root / masks, "--out", self.root / out]
        command += ["--brain-masks", self.root / brains] if brains else []
        command += ["--healthy", *healthy] if healthy else []
        return main([str(part) for part in [*command, *FAST, *more]])

    def scores(self, out="out"):
        return json.loads((self.root / out / "scores.json").read_text(encoding="utf-8"))

    def table(self, name, out="out"):
        with open(self.root / out / name, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def maps(tmp_path):
    return Maps(tmp_path)


def test_earlier_scores_are_replaced_with_a_note(maps, capsys):
    assert maps.score() == 0
    assert "held earlier scores" not in capsys.readouterr().err
    assert maps.score() == 0
    assert "out held earlier scores; they are replaced." in capsys.readouterr().err


def test_scores_match_scikit_learn(maps, capsys):
    assert maps.score() == 0
    assert "scores of 7 of 7 subjects, 4 with lesions, 3 healthy" in capsys.readouterr().out
    scores = maps.scores()
    values = np.concatenate([v[maps.inside] for v in maps.voxels.values()]).astype(np.float64)
    truth = np.concatenate([t[maps.inside] for t in maps.truth.values()])
    assert scores["auroc"]["value"] == pytest.approx(metrics.roc_auc_score(truth, values), abs=1e-9)
    assert scores["average_precision"]["value"] == pytest.approx(metrics.average_precision_score(truth, values))
    assert scores["about"]["mask"] == "brain mask"
    assert scores["about"]["threshold_from"] == "the healthy scans of this cohort"
    assert scores["healthy_threshold"]["n"] == 3
    assert [row["subject"] for row in maps.table("scores.csv")] == ["a", "b", "c", "d", "h1", "h2", "h3"]
    assert len(maps.table("lesions.csv")) == 4
    assert not (maps.root / "out" / "failures.csv").exists()


def test_the_page_is_written_beside_the_scores_and_replaced_with_them(maps, capsys):
    assert maps.score() == 0
    page = maps.root / "out" / "report" / "index.html"
    assert f"report: {page}" in capsys.readouterr().out
    assert ">d</th>" in page.read_text(encoding="utf-8")
    record = StageRecord.read(OutputFolder(maps.root / "out").record("evaluate"))
    assert record is not None and record.owns(maps.root / "out", "report/index.html")


def test_without_brain_masks_the_whole_image_is_scored(maps, capsys):
    assert maps.score(brains=None) == 0
    messages = capsys.readouterr()
    assert "inside the whole image" in messages.out and "all voxels of the image are scored" in messages.err
    assert maps.scores()["about"]["mask"] == "whole image"
    assert maps.table("scores.csv")[0]["voxels"] == str(16 * 17 * 18)


def test_file_names_are_matched(tmp_path, capsys):
    """BIDS names, a pattern with {id}, spaces and accents in either spelling."""
    bids = Maps(tmp_path / "bids", map_name="sub-{id}/anat/sub-{id}_map.nii.gz", mask_name="sub-{id}_label-x_mask.nii")
    assert bids.score() == 0
    assert bids.table("scores.csv")[0]["subject"] == "sub-a"
    own = Maps(tmp_path / "ünsere Karten", map_name="{id} – Karte.nii.gz", mask_name="{id}_seg.nii.gz")
    assert own.score() == 2
    assert "no id has a map and a mask" in capsys.readouterr().err
    patterns = {"maps": "maps/{id} – Karte.nii.gz", "masks": "masks/{id}_seg.nii.gz", "brains": "brains/{id}_*.nii.gz"}
    assert own.score(**patterns) == 0
    assert own.scores()["about"]["subjects"] == 7
    ids = ("h1", "h2", unicodedata.normalize("NFD", "Jürgen"), "Zoë", "ç")
    accents = Maps(tmp_path / "accents", ids=ids)
    renamed = accents.mask_path(ids[2])
    renamed.rename(renamed.with_name(unicodedata.normalize("NFC", renamed.name)))
    assert accents.score(healthy=("h1", "h2")) == 0
    assert {row["subject"] for row in accents.table("scores.csv")} == {"h1", "h2", "Jürgen", "Zoë", "ç"}


def test_a_cohort_table_gives_group_site_and_age(maps, capsys):
    rows = ["subject_id,group,site,age,t1w", "h1,control,Lyon,30,x", "h2,control,Graz,45,x", "h3,control,Lyon,50,x"]
    rows += ["a,patient,Lyon,61,x", "b,patient,Graz,62,x", "c,patient,Lyon,63,x", "d,patient,,,x", "e,control,Graz,3,x"]
    (maps.root / "who.csv").write_text("\n".join(rows))
    assert maps.score("--cohort", maps.root / "who.csv", healthy=()) == 0
    assert "in the cohort table, but without map and mask: e." in capsys.readouterr().err
    assert [row["site"] for row in maps.table("scores.csv")][:4] == ["Lyon", "Graz", "Lyon", ""]
    strata = {(row["by"], row["stratum"]) for row in maps.table("strata.csv")}
    assert {("site", "Graz"), ("site", "Lyon"), ("age", "60 to 75 years"), ("age", "below 40 years")} <= strata
    assert maps.scores()["healthy_threshold"]["n"] == 3
    assert maps.score("--cohort", maps.root / "who.csv", healthy=("a",)) == 2
    assert "a: is a patient in the cohort table and named by --healthy" in capsys.readouterr().err


def failure(maps, name):
    return {row["subject"]: row["reason"] for row in maps.table("failures.csv")}[name]


def test_a_map_on_another_grid_is_an_error_that_names_both_grids(maps, capsys):
    maps.put("maps", maps.map_name, "a", maps.voxels["a"][:, :, :9], Grid((16, 17, 9), np.diag([2.0, 2, 4, 1])))
    moved = GRID.affine.copy()
    moved[0, 3] = 1.0
    maps.put("masks", maps.mask_name, "b", maps.truth["b"], Grid(GRID.size_vox, moved))
    assert maps.score() == 3
    assert (
        "a: the evaluation mask and the anomaly map lie on different grids (16x17x18 voxels of 2x2x2 mm, RAS against "
        "16x17x9 voxels of 2x2x4 mm, RAS). Put both on one grid; scoring never resamples." in failure(maps, "a")
    )
    assert "b: the lesion mask and the anomaly map" in failure(maps, "b")
    assert "up to 1 mm apart" in failure(maps, "b")
    assert maps.scores()["about"]["subjects_left_out"] == ["a", "b"]
    assert "2 subject(s) left out of all scores" in capsys.readouterr().err


def test_a_mask_without_a_map_is_listed_and_counted(maps, capsys):
    maps.map_path("c").unlink()
    assert maps.score() == 3
    messages = capsys.readouterr()
    assert "FAILED c: has a lesion mask but no map. Add the map, or remove the mask." in messages.err
    assert "scores of 6 of 7 subjects" in messages.out
    about = maps.scores()["about"]
    assert (about["subjects"], about["subjects_left_out"]) == (6, ["c"])
    assert "no map" in failure(maps, "c")


def test_a_map_without_a_brain_mask_is_listed(maps):
    maps.path("brains", maps.mask_name, "d").unlink()
    assert maps.score() == 3
    assert "d: has a map but no brain mask." in failure(maps, "d")


def test_nan_is_an_error_inside_the_mask_only(maps):
    maps.voxels["a"][0, 0, 0] = np.nan
    maps.put("maps", maps.map_name, "a", maps.voxels["a"])
    assert maps.score() == 0
    maps.voxels["a"][5, 5, 5] = np.inf
    maps.put("maps", maps.map_name, "a", maps.voxels["a"])
    assert maps.score() == 3
    assert "a: 1 of 2184 scores of the anomaly map are NaN or infinite, expected finite numbers." in failure(maps, "a")


def test_a_constant_map_is_scored(maps, capsys):
    """AUROC 0.5 with a note, not an error."""
    maps.put("maps", maps.map_name, "a", np.zeros(GRID.size_vox, np.float32))
    assert maps.score() == 0
    assert "note: maps with the same score in all voxels: a.\n" in capsys.readouterr().err
    assert maps.table("scores.csv")[0]["auroc"] == "0.5"


def test_inverted_maps_give_a_note(maps, capsys):
    assert maps.score() == 0
    assert "inverted" not in capsys.readouterr().err
    for name, voxels in maps.voxels.items():
        maps.put("maps", maps.map_name, name, -voxels)
    assert maps.score() == 0
    messages = capsys.readouterr().err
    assert "note: lesions have lower scores than healthy tissue (AUROC 0.0" in messages
    assert "expected higher = more anomalous. Check whether the maps are inverted." in messages


def test_a_single_inverted_map_is_named(maps, capsys):
    maps.put("maps", maps.map_name, "b", -maps.voxels["b"])
    assert maps.score() == 0
    assert "note: lesions have lower scores than healthy tissue (AUROC) in: b (0.0" in capsys.readouterr().err


def test_a_healthy_map_that_fails_gives_a_note_on_the_threshold(maps, capsys):
    assert maps.score() == 0
    assert "the threshold uses" not in capsys.readouterr().err
    maps.map_path("h2").write_bytes(b"not an image at all")
    assert maps.score(out="other") == 3
    assert "the threshold uses 2 of 3 healthy maps: h2 could not be scored." in capsys.readouterr().err
    assert maps.scores("other")["healthy_threshold"]["n"] == 2
    assert "h2, map: is not in a supported image format" in failure_in(maps, "h2", "other")


@pytest.mark.parametrize("role", ["map", "lesion mask", "brain mask"])
def test_an_unreachable_file_is_named_by_its_role(tmp_path, role):
    maps = Maps(tmp_path / "Erika Muster")
    lost = {"map": maps.map_path("a"), "lesion mask": maps.mask_path("a")}
    path = lost.get(role, maps.path("brains", maps.mask_name, "a"))
    matched = match_subjects(
        MapFolders(*(str(maps.root / folder) for folder in ("maps", "masks", "brains")), healthy=("h*",))
    )
    path.unlink()
    path.symlink_to("../.git/annex/objects/Erika/Muster.nii.gz")
    out = maps.root / "out"
    _, failures = score_folders(matched, EvaluationSettings(bootstrap_draws=20), out, Console(), jobs=1)
    (failure,) = failures
    assert failure.key == "a" and failure.reason.startswith(f"a, {role}: ") and "Erika" not in failure.reason


def failure_in(maps, name, out):
    return {row["subject"]: row["reason"] for row in maps.table("failures.csv", out)}[name]


def test_voxels_of_two_sizes_give_a_note(maps, capsys):
    large = Grid(GRID.size_vox, np.diag([4.0, 4.0, 4.0, 1.0]))
    for folder, voxels in (("maps", maps.voxels["h1"]), ("brains", maps.inside)):
        maps.put(folder, maps.map_name, "h1", voxels, large)
    assert maps.score() == 0
    assert "voxels of 8 to 64 mm³ are pooled: pooled metrics count voxels, so the finest scans have 8 times" in (
        capsys.readouterr().err
    )


def test_lesions_outside_the_brain_give_a_note(maps, capsys):
    truth = maps.truth["b"].copy()
    truth[0, 0, :5] = True
    maps.put("masks", maps.mask_name, "b", truth)
    assert maps.score() == 0
    assert "5 lesion voxels lie outside the evaluation mask and are not scored: b." in capsys.readouterr().err


def test_swapped_folders_are_recognised(maps, capsys):
    assert maps.score(maps="masks", masks="maps") == 2
    assert capsys.readouterr().err.endswith("could be scored. Are --maps and --masks swapped?\n")
    assert "a: the map has two values and the lesion mask has more, expected the reverse." in failure(maps, "a")


def test_healthy_maps_alone_need_no_masks(maps, capsys):
    command = ["evaluate", "--maps", str(maps.root / "maps"), "--brain-masks", str(maps.root / "brains"), *FAST]
    command += ["--out", str(maps.root / "out"), "--healthy"]
    assert main([*command, "h*"]) == 2
    assert "No --masks, and 4 subjects are not healthy (a, b, c and 1 more)" in capsys.readouterr().err
    for name in "abcd":
        maps.map_path(name).unlink()
    assert main([*command, "*"]) == 0
    assert maps.scores()["healthy_threshold"]["n"] == 3
    assert "scores of 3 of 3 subjects, 0 with lesions, 3 healthy" in capsys.readouterr().out


def test_the_folder_of_a_run_is_refused(maps, capsys):
    (maps.root / "maps" / "config.yaml").write_text("seed: 0")
    assert maps.score() == 2
    assert "maps: is the folder of a run, expected maps only. Score the run with `voxout score COHORT" in (
        capsys.readouterr().err
    )


def test_the_same_scores_with_any_number_of_jobs(maps):
    for jobs in ("1", "3"):
        assert maps.score("--jobs", jobs, out=jobs) == 0
    assert maps.scores("1") == maps.scores("3")
    assert maps.table("scores.csv", "1") == maps.table("scores.csv", "3")


def test_a_folder_with_other_files_is_refused(maps, capsys):
    """Files that voxout did not write are kept, as with --out ."""
    mine = maps.root / "study" / "subjects" / "sub-a"
    mine.mkdir(parents=True)
    (mine / "T1.nii").write_bytes(b"mine")
    assert maps.score(out="study") == 2
    assert (
        "study: holds other files (subjects), expected a new folder or one that `voxout evaluate` made"
        in capsys.readouterr().err
    )
    assert (mine / "T1.nii").read_bytes() == b"mine" and not (maps.root / "study" / ".lock").exists()
    assert maps.score(out="maps") == 2
    assert "is a folder of maps or masks" in capsys.readouterr().err
    assert maps.score() == 0
    (maps.root / "out" / "subjects" / "notes.txt").write_text("mine")
    assert maps.score() == 0
    assert (maps.root / "out" / "subjects" / "notes.txt").read_text() == "mine"


def test_the_folder_of_a_run_is_no_place_for_scores(maps, capsys):
    """Its own scores and the threshold of its model would be replaced."""
    run = OutputFolder(maps.root / "run")
    run.scores.mkdir(parents=True)
    run.operating_point.parent.mkdir()
    for path in (run.scores / "scores.json", run.operating_point):
        path.write_text("{}")
    outputs = sizes(run.root, [run.scores, run.operating_point])
    StageRecord("score", {}, outputs).write(run.record("score"))
    assert maps.score(out="run") == 2
    assert "run: holds other files (records, scores), expected a new folder" in capsys.readouterr().err
    assert all((run.root / name).is_file() for name in outputs)


def test_an_id_is_no_formula_in_a_table(tmp_path):
    maps = Maps(tmp_path, ids=("h1", "h2", "=HYPERLINK(1)", "-5"))
    maps.map_path("-5").unlink()
    assert maps.score() == 3
    assert {row["subject"] for row in maps.table("scores.csv")} == {"h1", "h2", "'=HYPERLINK(1)"}
    assert [row["subject"] for row in maps.table("failures.csv")] == ["-5"]
    assert maps.table("lesions.csv")[0]["subject"] == "'=HYPERLINK(1)"


def test_the_bootstrap_draws_sessions_of_a_participant_together(tmp_path):
    """Duplicated scans, as two sessions, leave every interval unchanged."""
    once = Maps(tmp_path / "once", ids=("h1", "h2", "h3", "a", "b", "c"))
    twice = Maps(tmp_path / "twice", ids=())
    for name, voxels in once.voxels.items():
        for session in ("1", "2"):
            key = f"sub-{name}_ses-{session}"
            twice.put("maps", "{id}_map.nii.gz", key, voxels)
            twice.put("brains", "{id}_mask.nii.gz", key, once.inside)
            if once.truth[name].any():
                twice.put("masks", "{id}_mask.nii.gz", key, once.truth[name])
    assert once.score() == 0 and twice.score(healthy=("h*",)) == 0
    first, second = once.scores(), twice.scores()
    assert second["about"]["subjects"] == 2 * first["about"]["subjects"]
    for name in ("auroc", "average_precision", "lesion_sensitivity", "false_clusters_per_healthy_subject"):
        for field in ("value", "ci_low", "ci_high"):
            assert second[name][field] == pytest.approx(first[name][field], abs=1e-9), (name, field)


def test_empty_masks(maps, capsys):
    """An empty lesion mask is valid; an empty brain mask is an error."""
    maps.put("masks", maps.mask_name, "a", np.zeros(GRID.size_vox, bool))
    maps.put("brains", maps.mask_name, "b", np.zeros(GRID.size_vox, bool))
    assert maps.score() == 3
    assert "b: the evaluation mask is empty, expected the brain. Check the mask." in failure(maps, "b")
    assert "empty lesion masks of subjects not listed as healthy: a." in capsys.readouterr().err
    row = maps.table("scores.csv")[0]
    assert (row["subject"], row["truth_known"], row["lesions"]) == ("a", "yes", "0")
    assert row["dice_at_healthy_threshold"] == "" and row["flagged_volume_ml"] != ""
    assert row["reason_undefined"] == "no lesion voxel in the evaluation mask"


def test_a_mask_of_other_values_than_0_and_1_is_an_error(maps):
    soft = maps.truth["a"] * 0.25
    soft[4, 5, 4] = 0.75
    maps.put("masks", maps.mask_name, "a", soft.astype(np.float32))
    assert maps.score() == 3
    found = failure(maps, "a")
    assert "found the values 0, 0.25, 0.75, expected a mask of 0 and 1. Threshold it first." in found
    assert found.startswith("a, lesion mask: found the values"), (
        "named by role, since map and masks have the same file name"
    )


def test_all_subjects_healthy(maps):
    for name in "abcd":
        maps.map_path(name).unlink()
        maps.mask_path(name).unlink()
    maps.put("masks", maps.mask_name, "h1", np.zeros(GRID.size_vox, bool))
    assert maps.score() == 0
    scores = maps.scores()
    assert scores["healthy_threshold"]["value"] is not None
    for name in ("auroc", "best_dice_pooled", "aupro_fpr30", "aupimo", "lesion_sensitivity", "froc_score"):
        entry = scores[name]
        assert entry["value"] is None and entry["reason_undefined"], name
    assert scores["false_clusters_per_healthy_subject"]["value"] is not None


def test_no_healthy_subject(maps, capsys):
    for name in ("h1", "h2", "h3"):
        maps.map_path(name).unlink()
    assert maps.score(healthy=()) == 0
    assert "no subject is healthy: no threshold can be set" in capsys.readouterr().err
    assert maps.scores()["lesion_sensitivity"]["reason_undefined"].startswith("no healthy scan was scored")


def test_a_map_without_a_mask_is_left_out_and_named(maps, capsys):
    assert maps.score(healthy=("h1", "h2")) == 0
    assert "maps without a lesion mask are left out of all scores: h3." in capsys.readouterr().err
    assert maps.scores()["about"]["subjects_without_truth"] == ["h3"]


def test_an_id_that_matches_two_files_is_refused(maps, capsys):
    maps.put("maps", "other/{id}.nii", "a", maps.voxels["a"])
    assert maps.score() == 2
    messages = capsys.readouterr().err
    assert "a matches 2 files (a.nii.gz and other/a.nii), expected one. Select one by a path with {id} and" in messages
    assert not (maps.root / "out" / "scores.json").exists()
    assert maps.score(maps="maps/{id}.nii.gz") == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"maps": "nowhere"}, "nowhere: no such folder, expected a folder, or a path with {id} in it. Check the path."),
        ({"masks": "masks/a.nii.gz"}, "a.nii.gz: is a file, expected a folder"),
        ({"masks": "empty"}, "empty: found no file, expected an image (.nii.gz, .nii, .mgz). Check the path."),
        ({"masks": "masks/{id}_seg.nii"}, "found no file, expected a matching file. Check the path."),
        (
            {"maps": "maps/*.nii.gz"},
            "maps/*.nii.gz: has * but no {id}, expected {id} in place of the subject id. Write it as in",
        ),
        (
            {"healthy": ("k*",)},
            "--healthy k*: no such subject, expected an id such as a. Check the ids, and put quotes around patterns",
        ),
    ],
)
def test_missing_folders_and_ids(maps, capsys, wrong, message):
    (maps.root / "empty").mkdir()
    assert maps.score(**wrong) == 2
    assert message in capsys.readouterr().err


def test_the_old_form_of_the_command_gives_the_same_scores(maps, capsys):
    assert maps.score() == 0
    assert "voxout score" not in capsys.readouterr().err
    named = [("--maps", "maps"), ("--masks", "masks"), ("--brain-masks", "brains"), ("--out", "old")]
    arguments = [str(part) for name, folder in named for part in (name, maps.root / folder)]
    assert main(["score", *arguments, "--healthy", "h*", *FAST]) == 0
    assert "note: `voxout score --maps` is now called `voxout evaluate --maps`." in capsys.readouterr().err
    assert maps.scores() == maps.scores("old")


def test_either_a_run_or_maps(maps, capsys):
    for more in ([], [maps.root / "cohort.csv"], ["--maps", maps.root], ["--maps", maps.root, "--masks", maps.root]):
        assert main(["score", *map(str, more)]) == 2
        assert "expected COHORT and OUT. For maps of any other method, use `voxout evaluate`" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", "--maps", str(maps.root)])
    assert "the following arguments are required: --out" in capsys.readouterr().err


def test_no_subject_can_be_scored(maps, capsys):
    for name in maps.voxels:
        maps.map_path(name).write_bytes(b"no map")
    assert maps.score() == 2
    messages = capsys.readouterr().err
    assert messages.count("a, map: is not in a supported image format") == 1
    assert "None of 7 subjects could be scored. See the reasons above and correct the first." in messages
    assert "a.nii.gz" not in messages and "a.nii.gz" not in (maps.root / "out" / "failures.csv").read_text()
    assert len(maps.table("failures.csv")) == 7
    for name, voxels in maps.voxels.items():
        maps.put("maps", maps.map_name, name, voxels)
    assert maps.score() == 0, "files of the failed attempt do not get in the way"


def test_a_second_call_leaves_nothing_of_the_first(maps):
    assert maps.score() == 0
    maps.map_path("d").unlink()
    maps.mask_path("d").unlink()
    assert maps.score() == 0
    assert not (maps.root / "out" / "subjects" / "d.npz").exists()
    assert main(["evaluate", "--maps", str(maps.root / "maps"), "--masks", str(maps.root / "masks"), "--out",
                 str(maps.root / "dry"), "--dry-run"]) == 0  # fmt: skip
    assert not (maps.root / "dry").exists()


# -- compare ---------------------------------------------------------------------------------------------------------
def compared(maps, *folders):
    code = main(["compare", *(str(maps.root / f) for f in folders), "--out", str(maps.root / "differences")])
    path = maps.root / "differences" / "compare.json"
    return code, json.loads(path.read_text()) if path.is_file() else None


@pytest.fixture
def methods(maps):
    """The same maps twice, the second time with all lesions a little brighter."""
    assert maps.score(out="first") == 0
    for name, voxels in maps.voxels.items():
        maps.put("maps", maps.map_name, name, voxels + np.float32(0.7) * maps.truth[name])
    assert maps.score(out="second") == 0
    return maps


def test_differences_are_paired(methods, capsys):
    code, content = compared(methods, "first", "second")
    assert code == 0
    messages = capsys.readouterr().out
    assert "second minus first, on 7 subjects" in messages
    by_name = {d["metric"]: d for d in content["differences"]}
    first, second = methods.scores("first"), methods.scores("second")
    for name, d in by_name.items():
        assert d["of_first"] == first[name] and d["of_second"] == second[name], name
        if d["difference"]["value"] is not None:
            assert d["difference"]["value"] == pytest.approx(second[name]["value"] - first[name]["value"])
    auroc = by_name["auroc"]["difference"]
    values = [f"{value:.3g}" for value in (second["auroc"]["value"], first["auroc"]["value"], auroc["value"])]
    assert "AUROC, pooled: {} minus {}: {}  (".format(*values) in messages
    assert 0 < auroc["ci_low"] <= auroc["value"] <= auroc["ci_high"]
    assert "healthy_threshold" not in by_name
    assert by_name["aupimo"]["difference"]["reason_undefined"]
    rows = list(csv.DictReader((methods.root / "differences" / "compare.csv").open()))
    assert len(rows) == len(by_name) and float(rows[0]["difference"]) == pytest.approx(auroc["value"])
    (methods.root / "copy").symlink_to(methods.root / "first")
    assert "named twice" in str(compare_error(methods, capsys, "first", "copy"))


def compare_error(maps, capsys, *folders):
    code, _ = compared(maps, *folders)
    assert code == 2
    return capsys.readouterr().err


def test_only_common_subjects_are_compared_and_the_others_are_named(methods, capsys):
    methods.map_path("b").unlink()
    assert methods.score(out="third") == 3
    code, content = compared(methods, "first", "second", "third")
    assert code == 3
    assert "1 subject(s) not compared, since not all folders have them: b" in capsys.readouterr().err
    assert content["about"]["subjects_not_compared"] == {"b": ["first", "second"]}
    pairs = {(d["first"], d["second"]) for d in content["differences"]}
    assert pairs == {("first", "second"), ("first", "third"), ("second", "third")}


def test_folders_that_cannot_be_compared(methods, capsys):
    messages = compare_error(methods, capsys, "first")
    assert "found one folder of scores, expected at least two" in messages
    assert "nowhere: holds no scores" in compare_error(methods, capsys, "first", "nowhere")
    assert methods.score("--set", "evaluation.smallest_cluster_mm3=64", out="other") == 0
    messages = compare_error(methods, capsys, "first", "other")
    assert "different settings (smallest_cluster_mm3 30.0 against 64.0), expected the same" in messages
    assert methods.score(brains=None, out="whole") == 0
    assert "different mask (brain mask against whole image)" in compare_error(methods, capsys, "first", "whole")
    methods.put("masks", methods.mask_name, "c", methods.truth["c"][::-1])
    assert methods.score(out="mirrored") == 0
    assert "c was scored against different masks" in compare_error(methods, capsys, "first", "mirrored")
    methods.put("masks", methods.mask_name, "c", methods.truth["a"])
    assert methods.score(out="truth") == 0
    assert "c was scored against different masks" in compare_error(methods, capsys, "first", "truth")
    (methods.root / "truth" / "scores.json").write_text("{}")
    assert "scores.json: not readable as scores (KeyError)" in compare_error(methods, capsys, "first", "truth")
