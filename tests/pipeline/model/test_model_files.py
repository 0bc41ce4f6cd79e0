"""Models from elsewhere: no code in them runs, no link leads out, and changed models are refused."""

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.volume import read_mask
from voxout.evaluation.scoring.operating_point import StoredPoint
from voxout.models.anomaly.ensemble import Ensemble
from voxout.models.encoder.checkpoint import Checkpoint
from voxout.models.features.source import FeatureSource
from voxout.pipeline.cli.main import main
from voxout.pipeline.config.config import Config, load_config, save_config
from voxout.pipeline.config.own_commands import COMMANDS
from voxout.pipeline.model.model_files import require_files_of_model, write_model_record
from voxout.pipeline.model.whole_model import FORMAT, MODEL_FORMAT, require_whole_model
from voxout.pipeline.workflow.records import StageRecord, sizes
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.patches.voxel_mask import VoxelMask

from .small_model import GRID, SETTINGS

COMMAND = "preprocessing.brain_extraction.command"


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("new")
    nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)).to_filename(folder / "scan.nii.gz")
    (folder / "cohort.csv").write_text("subject_id,group,t1w\np1,patient,scan.nii.gz\n")
    return folder / "cohort.csv"


def renew_records(model: Path, settings: dict | None = None) -> None:
    """Renew all records, as after a deliberate change."""
    folder = OutputFolder(model)
    if settings is not None:
        save_config(folder.fitted_config, Config.model_validate(settings))
    train = StageRecord.read(folder.record("train"))
    train = StageRecord("train", {}, sizes(model, [folder.encoder]), started=train.started)
    train.write(folder.record("train"))
    write_model_record(folder, encoders=True)
    inputs = {MODEL_FORMAT: FORMAT, "the encoder": train.identity}
    StageRecord("fit", inputs, sizes(model, [folder.detectors]), started="later").write(folder.record("fit"))


def refused(model: Path, cohort: Path, capsys, *more: str) -> str:
    """Return the single message with which `voxout apply` refuses a model without any output."""
    out = model.parent / "out"
    assert main(["apply", str(model), str(cohort), str(out), "--device", "cpu", *more]) == 2
    messages = capsys.readouterr().err.strip()
    assert messages.count("\n") == 0 and messages.startswith("voxout: ") and "Traceback" not in messages
    assert not out.exists()
    return messages


def test_an_unchanged_model_is_applied(model, cohort, capsys):
    assert main(["apply", str(model), str(cohort), str(model.parent / "out"), "--dry-run"]) == 0
    assert "check: would run" in capsys.readouterr().out


# -- files that changed ------------------------------------------------------------------------------------------------
def edit_tensors(path: Path, change) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        about = file.metadata()
    save_file({name: np.array(change(name, a), order="C") for name, a in load_file(path).items()}, path, about)


def zero_encoder(model):
    edit_tensors(next((model / "encoder").glob("step-*")), lambda name, a: np.zeros_like(a))


def move_detectors(model):
    path = model / "detectors" / "ocsvm" / "field" / "detectors.safetensors"
    content = bytearray(path.read_bytes())
    content[-200:-100], content[-100:] = content[-100:], content[-200:-100]
    path.write_bytes(content)


def scale_calibration(model):
    edit_tensors(
        model / "detectors" / "combined.safetensors", lambda n, a: a * a.dtype.type(1e6) if n == "spread" else a
    )


def double_surroundings(model):
    edit_tensors(model / "detectors" / "surroundings.safetensors", lambda name, a: 2 * a)


def reverse_knots(model):
    path = model / "detectors" / "intensity" / "calibration.safetensors"
    edit_tensors(path, lambda name, a: a[::-1] if name == "knots" else a)


def edit_text(name, change):
    def edit(model):
        path = model / name
        path.write_text(change(path.read_text()))

    return edit


CHANGES = {
    "encoder/step-000005.safetensors": zero_encoder,
    "detectors/ocsvm/field/detectors.safetensors": move_detectors,
    "detectors/combined.safetensors": scale_calibration,
    "detectors/surroundings.safetensors": double_surroundings,
    "detectors/intensity/calibration.safetensors": reverse_knots,
    "encoder/checkpoint.json": edit_text("encoder/checkpoint.json", lambda t: t.replace("t1w", "t2w")),
    "detectors/channels.json": edit_text("detectors/channels.json", lambda t: t.replace("1.0", "0.5")),
    "detectors/confounds.json": edit_text("detectors/confounds.json", lambda t: t.replace("1", "0")),
    "detectors/trained_on.json": edit_text("detectors/trained_on.json", lambda t: t.replace("0", "1", 1)),
    "detectors/config.yaml": edit_text("detectors/config.yaml", lambda t: t.replace("native", "native ")),
    "detectors/brain_mask.nii.gz": lambda m: (m / "detectors/brain_mask.nii.gz").open("r+b").write(b"\0"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_changed_is_named(model, cohort, capsys, name):
    before = (model / name).stat().st_size
    CHANGES[name](model)
    messages = refused(model, cohort, capsys)
    if (model / name).stat().st_size == before:
        assert f"{model}: {name} is not the file that fit wrote (changed or damaged since). Copy the model" in messages
    else:  # noticed by the recorded sizes
        assert "files are missing from the model or damaged" in messages


def test_a_change_that_keeps_size_and_time_is_noticed_in_a_new_process(model, monkeypatch):
    path = model / "detectors" / "channels.json"
    state = path.stat()
    path.write_text(path.read_text().replace("1.0", "0.9"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    monkeypatch.setattr("voxout.pipeline.model.model_files._known", {})
    with pytest.raises(UserError, match="channels.json is not the file that fit wrote"):
        require_files_of_model(OutputFolder(model))


def test_each_file_is_read_once_in_a_process(model, monkeypatch):
    folder = OutputFolder(model)
    require_files_of_model(folder)
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("it was read again"))
    require_files_of_model(folder)
    os.utime(model / "detectors" / "channels.json")
    with pytest.raises(pytest.fail.Exception):
        require_files_of_model(folder)


def test_an_added_file_and_a_missing_or_edited_record(model, cohort, capsys):
    (model / "detectors" / ".DS_Store").write_text("of another program")
    require_whole_model(OutputFolder(model))
    (model / "detectors" / "more.safetensors").write_text("")
    assert "detectors/more.safetensors is not among the files that fit wrote" in refused(model, cohort, capsys)
    (model / "detectors" / "more.safetensors").unlink()
    record = model / "detectors" / "model.json"
    original = record.read_text()
    format_9 = original.replace("voxout model 1", "voxout model 9")
    for text in ("", "[]", original.replace("sha256", "md5"), format_9):
        record.write_text(text.ljust(len(original)))
        messages = refused(model, cohort, capsys)
        assert "model.json" in messages or "files are missing from the model or damaged" in messages
    record.unlink()
    assert "files are missing" in refused(model, cohort, capsys)


@pytest.mark.parametrize("stage", ["fit", "train"])
@pytest.mark.parametrize(
    "change", [{"inputs": []}, {"outputs": {"a": "b"}}, {"outputs": [1]}, {"started": 5}, {"failed": 1}, {"done": None}]
)
def test_an_edited_record_gives_one_message(model, cohort, capsys, stage, change):
    path = model / "records" / f"{stage}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert f"the record of the stage {stage}" in refused(model, cohort, capsys)


@pytest.mark.parametrize("edited", ["1.0", "NaN", '"3.6"', "null"])
def test_an_edited_threshold_is_refused_before_any_output(model, cohort, capsys, edited):
    path = OutputFolder(model).operating_point
    StoredPoint(3.6, (3.5, 3.7), 4, {"false_clusters": 1.0}, "a model").save(path)
    require_whole_model(OutputFolder(model))
    path.write_text(path.read_text().replace("3.6", edited))
    assert "operating_point.json" in refused(model, cohort, capsys)


# -- files changed on purpose, with renewed hashes ---------------------------------------------------------------------
def write(name, text):
    return lambda model: (model / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (zero_encoder, "is 0 everywhere"),
        (reverse_knots, "does not rise"),
        (edit_text("encoder/checkpoint.json", lambda t: t.replace('"step-0', '"../step-0')), "tensors"),
        (edit_text("encoder/checkpoint.json", lambda t: t.replace('"step-0', '"/etc/step-0')), "tensors"),
        (
            edit_text("encoder/checkpoint.json", lambda t: t.replace('"latent_size": 4', '"latent_size": 900')),
            "shape",
        ),
        (write("detectors/channels.json", '{"scale": {}, "derived": []}'), "channels.json"),
        (write("detectors/confounds.json", '{"brain_components": "many"}'), "confounds.json"),
        (write("detectors/confounds.json", '{"brain_components": -1}'), "confounds.json"),
    ],
)
def test_invalid_content_is_refused_even_with_the_right_hash(model, change, found):
    change(model)
    renew_records(model)
    folder = OutputFolder(model)
    require_whole_model(folder)
    with pytest.raises(UserError, match=found):
        source = FeatureSource(Channels.load(folder.detectors), (Checkpoint.load(folder.encoder),))
        Ensemble.load(folder.detectors, GRID, source, load_config(folder.fitted_config).models)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (write("detectors/trained_on.json", '[["a"]]'), "trained_on.json"),
        (write("detectors/trained_on.json", "{}"), "trained_on.json"),
        (write("detectors/config.yaml", "models: {detector: {nu: .nan}}"), "config.yaml: not the settings of a model"),
        (write("detectors/config.yaml", "a: [" * 3), "config.yaml: not the settings of a model"),
        (write("detectors/config.yaml", "[" * 20_000), "config.yaml: not the settings of a model"),
        (write("detectors/config.yaml", "x: !!python/object/apply:os.system [id]"), "not the settings of a model"),
    ],
)
def test_apply_refuses_invalid_settings_of_a_model(model, cohort, capsys, change, found):
    change(model)
    renew_records(model)
    assert found in refused(model, cohort, capsys)


# -- links -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    ["detectors/channels.json", "encoder/checkpoint.json", "records/fit.json", "detectors", "encoder/tensorboard"],
)
def test_no_link_leads_out_of_the_folder(model, cohort, capsys, name):
    outside = model.parent / "outside"
    if (model / name).exists():
        shutil.move(model / name, outside)
    (model / name).symlink_to(outside)
    messages = refused(model, cohort, capsys)
    assert f"{model}: {name} is a link that leads out of the model's folder" in messages
    assert "cp -rL" in messages


def test_a_link_inside_the_folder_is_followed(model):
    """As in a git-annex repository."""
    shutil.move(model / "detectors" / "channels.json", model / "objects")
    (model / "detectors" / "channels.json").symlink_to("../objects")
    require_whole_model(OutputFolder(model))


def test_a_pipe_is_refused(model, cohort, capsys):
    (model / "detectors" / "channels.json").unlink()
    os.mkfifo(model / "detectors" / "channels.json")
    assert "channels.json is neither a file nor a folder" in refused(model, cohort, capsys)


# -- programs ----------------------------------------------------------------------------------------------------------
def with_command(model: Path, **extraction: str) -> Path:
    renew_records(model, SETTINGS | {"preprocessing": SETTINGS["preprocessing"] | {"brain_extraction": extraction}})
    return model


def test_the_command_of_a_model_is_never_run(model, cohort, tmp_path, capsys):
    theirs = f"touch {tmp_path}/ran {{image}} {{mask}}"
    with_command(model, method="command", command=theirs)
    messages = refused(model, cohort, capsys)
    assert f"{COMMAND} names a program to run" in messages and f"Name yours with --set {COMMAND}=" in messages
    for other in ("seed=1", "preprocessing.brain_extraction.method=command"):
        assert "names a program to run" in refused(model, cohort, capsys, "--set", other)
    assert not (tmp_path / "ran").exists()


def test_a_command_that_is_not_in_use_is_refused_too(model, cohort, capsys):
    with_command(model, method="auto", command="touch {image} {mask}")
    assert "names a program to run" in refused(model, cohort, capsys)


@pytest.mark.parametrize("by", ["--set", "section", "--config"])
def test_the_users_own_command_may_differ_from_the_models(model, cohort, tmp_path, by):
    with_command(model, method="command", command="theirs {image} {mask}")
    ours = "ours -i {image} -o {mask}"
    if by == "--config":
        extraction = {"method": "command", "command": ours}
        own = SETTINGS | {"preprocessing": SETTINGS["preprocessing"] | {"brain_extraction": extraction}}
        save_config(tmp_path / "own.yaml", Config.model_validate(own))
        more = ["--config", str(tmp_path / "own.yaml")]
    elif by == "--set":
        more = ["--set", f"{COMMAND}={ours}"]
    else:
        more = ["--set", f"preprocessing.brain_extraction={{method: command, command: '{ours}'}}"]
    assert main(["apply", str(model), str(cohort), str(tmp_path / "out"), "--dry-run", *more]) == 0


@pytest.mark.parametrize("name", ["run", "prepare"])
def test_the_command_of_an_output_folder_from_elsewhere_is_not_run(cohort, tmp_path, capsys, name):
    out = tmp_path / "out"
    theirs = {"method": "command", "command": f"touch {tmp_path}/ran {{image}} {{mask}}"}
    save_config(out / "config.yaml", Config.model_validate({"preprocessing": {"brain_extraction": theirs}}))
    assert main([name, str(cohort), str(out), "--device", "cpu"]) == 2
    assert f"{out}/config.yaml: {COMMAND} names a program to run" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and [path.name for path in out.iterdir()] == ["config.yaml"]


def test_every_setting_of_free_text_is_known_to_be_a_command():
    """Settings that name a program or a path have to be listed in `own_commands`."""

    def free_texts(section, prefix=""):
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                yield from free_texts(field.annotation, f"{prefix}{name}.")
            elif field.annotation in (str, Path) or "Path" in str(field.annotation):
                yield f"{prefix}{name}"

    assert tuple(free_texts(Config)) == COMMANDS


@pytest.mark.parametrize("seed", range(25))
def test_random_changes_are_read_or_refused_with_a_message(model, seed):
    """With the right hashes, only the code that reads the files can notice a change."""
    random = np.random.default_rng(seed)
    files = sorted(path for path in model.rglob("*") if path.is_file() and path.name != "model.json")
    path = files[seed % len(files)]
    content = bytearray(path.read_bytes())
    # Headers and text are at the start of the files.
    for place in random.integers(0, min(len(content), 1500), random.integers(1, 5)):
        content[place] = random.integers(32, 127) if random.random() < 0.8 else random.integers(0, 256)
    path.write_bytes(content)
    folder = OutputFolder(model)
    try:
        if path.parent.name != "records":
            renew_records(model)
        require_whole_model(folder)
        brain_mask = read_mask(folder.detectors / "brain_mask.nii.gz")
        mask = VoxelMask(brain_mask.grid, brain_mask.voxels)
        source = FeatureSource(Channels.load(folder.detectors), (Checkpoint.load(folder.encoder),))
        Ensemble.load(folder.detectors, mask, source, load_config(folder.fitted_config).models)
    except UserError as error:
        assert "\n" not in error.problems[0]


def test_a_model_needs_only_the_documented_files(model, tmp_path):
    """Other records hold ids of the cohort; docs/privacy.md lists the files that `voxout apply` needs."""
    shared = tmp_path / "shared"
    for folder in ("encoder", "detectors"):
        shutil.copytree(model / folder, shared / folder)
    (shared / "records").mkdir()
    for name in ("train.json", "fit.json", "operating_point.json"):
        if (model / "records" / name).exists():
            shutil.copy(model / "records" / name, shared / "records" / name)
    require_whole_model(OutputFolder(shared))
