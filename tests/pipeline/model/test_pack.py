"""Packed models: the same maps, no names in them, and no harm from damaged or hostile files."""

import hashlib
import json
import math
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import voxout
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.errors import UserError, for_terminal
from voxout.evaluation.scoring.operating_point import StoredPoint
from voxout.pipeline.cli.main import main
from voxout.pipeline.config.config import Config, load_config, save_config
from voxout.pipeline.model.model_files import read_trained_on, write_model_record
from voxout.pipeline.model.pack import pack
from voxout.pipeline.model.unpack import model_folder, read_card, unpack
from voxout.pipeline.model.whole_model import FORMAT, MODEL_FORMAT, require_whole_model
from voxout.pipeline.workflow.records import StageRecord
from voxout.pipeline.workflow.stage_inputs import fit_identity

from ..planted_name import NAME, places_of_name, plant_in_header
from .small_model import GRID, SETTINGS, brains, fit_small_model

AGES = (23.7, 31.0, 38.5, 44.0, 47.9, 52.0, 55.5, 60.0, 71.2, 78.3)
INSIDE = np.ones(GRID.size, bool)


@pytest.fixture(scope="session")
def packed(fitted, tmp_path_factory) -> Path:
    """The small model, packed."""
    path = tmp_path_factory.mktemp("packed") / "model.voxout"
    pack(OutputFolder(fitted), path)
    return path


@pytest.fixture
def copy(packed, tmp_path) -> Path:
    return Path(shutil.copy(packed, tmp_path / "copy.voxout"))


def with_threshold(model: Path) -> StoredPoint:
    folder = OutputFolder(model)
    settings = load_config(folder.fitted_config).evaluation
    used = {name: getattr(settings, name) for name in ("false_clusters", "smallest_cluster_mm3", "space")}
    point = StoredPoint(3.6, (3.5, 3.7), 10, used, fit_identity(folder), (80.0, 20.0, 300.0))
    point.save(folder.operating_point)
    return point


def test_a_packed_model_gives_the_same_maps(fitted, packed):
    own, other = (voxout.load_model(path, device="cpu") for path in (fitted, packed))
    assert packed.stat().st_size < sum(path.stat().st_size for path in fitted.rglob("*") if path.is_file())
    for brain in brains(3, seed=9):
        z, again = (model.ensemble.predict(brain.astype(np.float32), INSIDE).z for model in (own, other))
        assert z.std() > 0.3
        assert np.abs(again - z).max() < 0.05
    assert repr(other) == repr(own)


def test_the_detectors_of_a_packed_model_hold_no_latents_of_controls(packed):
    (scorer,) = (each for each in voxout.load_model(packed, device="cpu").ensemble.scorers if each.name == "ocsvm")
    assert (scorer.scorer.field.n_support == 1).all()
    assert not scorer.scorer.field.arrays.support_vectors[:, :-1].any()


def test_the_threshold_comes_along_and_fits_the_unpacked_model(model, tmp_path):
    point = with_threshold(model)
    pack(OutputFolder(model), tmp_path / "model.voxout")
    for loaded in (
        voxout.load_model(tmp_path / "model.voxout", device="cpu"),
        voxout.load_model(unpack(tmp_path / "model.voxout", tmp_path / "un").root, device="cpu"),
    ):
        assert loaded.threshold == point.threshold
        assert loaded.operating_point.draws == point.draws
        # In an order that says nothing of the controls.
        assert loaded.operating_point.largest_mm3 == (300.0, 80.0, 20.0)


def test_an_unpacked_model_is_a_model_like_any_other(packed, tmp_path):
    folder = unpack(packed, tmp_path / "new" / "model")
    assert require_whole_model(folder).config == load_config(folder.fitted_config)
    assert read_trained_on(folder) == frozenset()
    assert sorted(path.name for path in folder.root.iterdir()) == ["README.md", "detectors", "encoder", "records"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["model"]
    pack(folder, tmp_path / "again.voxout")
    assert "| to | 1 healthy scans |" in read_card(tmp_path / "again.voxout")
    own, other = (voxout.load_model(path, device="cpu") for path in (folder.root, tmp_path / "again.voxout"))
    brain = brains(1, seed=8)[0].astype(np.float32)
    assert np.abs(own.ensemble.predict(brain, INSIDE).z - other.ensemble.predict(brain, INSIDE).z).max() < 0.1


def test_the_same_model_gives_the_same_bytes_and_the_same_identity(fitted, packed, copy, tmp_path):
    pack(OutputFolder(fitted), tmp_path / "again.voxout")
    assert (tmp_path / "again.voxout").read_bytes() == packed.read_bytes()
    identities = []
    for path in (packed, copy):
        with model_folder(path) as folder:
            identities.append(fit_identity(folder))
    assert not folder.root.exists()
    assert len(set(identities)) == 1
    other = fit_small_model(tmp_path / "other", seed=1)
    pack(OutputFolder(other), tmp_path / "other.voxout")
    with model_folder(tmp_path / "other.voxout") as folder:
        assert fit_identity(folder) not in identities


# -- what a model says of persons --------------------------------------------------------------------------------------
def test_a_name_in_all_parts_of_a_model_is_nowhere_in_the_packed_file(tmp_path):
    ensemble = SETTINGS["models"]["ensemble"] | {"covariates": ["age"]}
    settings = SETTINGS | {"models": SETTINGS["models"] | {"ensemble": ensemble}}
    root = fit_small_model(tmp_path / "model", name=NAME, settings=settings, ages=AGES)
    folder = OutputFolder(root)
    with_threshold(root)
    plant_in_header(folder.detectors / "brain_mask.nii.gz")
    command = {"method": "command", "command": f"/home/{NAME}/strip {{image}} {{mask}}"}
    settings["preprocessing"] = settings["preprocessing"] | {"brain_extraction": command}
    save_config(folder.fitted_config, Config.model_validate(settings))
    (folder.encoder / "tensorboard").mkdir()
    (folder.encoder / "tensorboard" / f"events.{NAME}").write_text(NAME)
    (folder.detectors / f".{NAME}").write_text(NAME)
    (root / "log.jsonl").write_text(f'{{"message": "{NAME}"}}')
    write_model_record(folder, encoders=True)
    train = StageRecord.read(folder.record("train"))
    inputs = {MODEL_FORMAT: FORMAT, "the encoder": train.identity, f"age sub-{NAME}01": 23.7}
    record = StageRecord("fit", inputs, {}, done=(f"sub-{NAME}01",), warnings=(f"sub-{NAME}02: old",), started="then")
    record.write(folder.record("fit"))
    assert {"records/fit.json", "detectors/config.yaml", "detectors/brain_mask.nii.gz", "encoder/checkpoint.json"} <= {
        place.removeprefix("the name of ") for place in places_of_name(root)
    }
    (tmp_path / "sent").mkdir()
    path = tmp_path / "sent" / "model.voxout"
    pack(folder, path)
    unpack(path, tmp_path / "sent" / "model")
    assert places_of_name(tmp_path / "sent") == []
    with zipfile.ZipFile(path) as archive:
        texts = b"".join(archive.read(name) for name in archive.namelist() if not name.endswith(".safetensors"))
        covariates = json.loads(archive.read("detectors/covariates.json"))
    assert (covariates["age"]["lowest"], covariates["age"]["highest"]) == (20.0, 80.0)
    for age in AGES:
        assert not re.search(rf"\b{re.escape(f'{age:g}')}\b", texts.decode()) or age == int(age), age
    assert b"0123456789abcdef" not in texts and b'subjects_hash": ""' in texts
    assert (
        "program {image} {mask}"
        in load_config(tmp_path / "sent/model/detectors/config.yaml").preprocessing.model_dump_json()
    )


def test_the_decoder_of_a_packed_encoder_is_not_the_trained_one(fitted, packed):
    own, other = (voxout.load_model(path, device="cpu").source.checkpoints[0].autoencoder for path in (fitted, packed))
    for name, value in own.encoder.state_dict().items():
        assert value.equal(other.encoder.state_dict()[name])
    weights = [name for name, value in own.decoder.state_dict().items() if value.ndim > 1]
    own_state, other_state = own.decoder.state_dict(), other.decoder.state_dict()
    assert weights and all(not own_state[name].equal(other_state[name]) for name in weights)


def test_the_card_is_text_in_counts_and_settings(packed, capsys):
    assert main(["model", "show", str(packed)]) == 0
    shown = capsys.readouterr().out
    assert shown.strip() == read_card(packed).strip()
    for words in (
        "| to | 1 healthy scans |",
        "ocsvm, intensity",
        "at 4 mm, 512 voxels",
        "threshold | none: its cohort was not mapped yet",
    ):
        assert words in shown


# -- commands ----------------------------------------------------------------------------------------------------------
def test_pack_and_unpack_print_what_they_wrote(fitted, tmp_path, capsys):
    path = tmp_path / "deep" / "model.voxout"
    assert main(["model", "pack", str(fitted), str(path)]) == 0
    shown, notes = capsys.readouterr()
    assert "note: the model has no threshold, since its cohort was not mapped" in notes
    assert re.search(
        r"ocsvm: scores move by 0\.[0-9] % of their spread, support vectors merged".replace(" %", "%"), shown
    )
    assert re.search(r"model\.voxout: [0-9.]+ MB \(the folder: [0-9.]+ MB\)\nSHA-256: [0-9a-f]{64}\n$", shown)
    assert [each.name for each in path.parent.iterdir()] == ["model.voxout"]
    assert main(["model", "unpack", str(path), str(tmp_path / "un")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'un'}\n"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("there.voxout", "exists already, expected a new file"),
        ("model.zip", "ends in .zip, expected a new file"),
        ("model", "ends in no suffix, expected a new file"),
    ],
)
def test_pack_overwrites_nothing(fitted, tmp_path, capsys, place, words):
    (tmp_path / "there.voxout").write_text("mine")
    assert main(["model", "pack", str(fitted), str(tmp_path / place)]) == 2
    assert words in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("there.voxout", "mine")]


def test_unpack_needs_a_new_folder(packed, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["model", "unpack", str(packed), str(tmp_path)]) == 2
    assert "exists and is not empty, expected a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# -- files from elsewhere ----------------------------------------------------------------------------------------------
def entries_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, entries, kind: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in entries.items() if isinstance(entries, dict) else entries:
            archive.writestr(name, content)


def edit_index(path: Path, change) -> None:
    entries = entries_of(path)
    index = json.loads(entries["index.json"])
    change(index)
    rewrite(path, entries | {"index.json": json.dumps(index).encode()})


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-2000])


def flip(path):
    """Change a byte of the compressed data of an entry."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("detectors/combined.safetensors")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0xFF
    path.write_bytes(content)


def exchange(path):
    entries = entries_of(path)
    entries["detectors/ocsvm/calibration.safetensors"] = entries["detectors/combined.safetensors"]
    rewrite(path, entries)


def add(name):
    return lambda path: rewrite(path, entries_of(path) | {name: b"x"})


def add_and_list(name):
    def change(path):
        add(name)(path)
        edit_index(path, lambda index: index["entries"].update({name: {"size": 1, "sha256": "0" * 64}}))

    return change


def leave_out(path):
    entries = entries_of(path)
    del entries["settings.json"]
    rewrite(path, entries)


def twice(path):
    entries = list(entries_of(path).items())
    with pytest.warns(UserWarning, match="Duplicate name"):
        rewrite(path, [*entries, entries[-1]])


def bomb(path):
    """Zeros that unpack to a thousand times the size of the file."""
    entries = entries_of(path)
    rewrite(path, entries | {"detectors/combined.safetensors": bytes(50_000_000)})
    edit_index(path, lambda index: index["entries"]["detectors/combined.safetensors"].update({"size": 50_000_000}))


def understated(path):
    """An entry whose declared size is smaller than what it unpacks to."""
    name, size = b"detectors/surroundings.safetensors", 100
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name.decode())
    content[info.header_offset + 22 : info.header_offset + 26] = size.to_bytes(4, "little")
    place = content.rindex(name) - 46
    content[place + 24 : place + 28] = size.to_bytes(4, "little")
    path.write_bytes(content)


def other_content(name, content):
    """Content that no model has, with the right checksum."""

    def change(path):
        entries = entries_of(path) | {name: content}
        index = json.loads(entries["index.json"])
        index["entries"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        rewrite(path, entries | {"index.json": json.dumps(index).encode()})

    return change


def repacked(path):
    rewrite(path, entries_of(path), zipfile.ZIP_LZMA)


def without_index(path):
    rewrite(path, {"README.md": b"a zip"})


def newer(index):
    index.update({"version": 2, "voxout": "0.9.0", "more": {}})


BROKEN = {
    "text": (lambda path: path.write_text("a model"), "is not a packed model or is cut off, expected a file that"),
    "empty": (lambda path: path.write_bytes(b""), "is not a packed model or is cut off"),
    "cut off": (cut_off, "is not a packed model or is cut off"),
    "another zip": (without_index, "is a zip without the index of a packed model"),
    "newer": (
        lambda path: edit_index(path, newer),
        "was packed by voxout 0.9.0 in format 2, expected format 1 at most",
    ),
    "other format of models": (
        lambda path: edit_index(path, lambda index: index["about"].update({"model_format": 3})),
        "was fitted by another version of voxout (format 3, expected 6)",
    ),
    "index of other content": (
        lambda path: edit_index(path, lambda index: index.pop("entries")),
        "index.json is damaged",
    ),
    "flipped byte": (flip, "combined.safetensors is damaged, expected what was packed"),
    "exchanged entries": (exchange, "calibration.safetensors is damaged"),
    "path outside": (add("../evil.json"), "an entry ../evil.json, which no packed model has"),
    "listed path outside": (add_and_list("../../evil.json"), "an entry ../../evil.json, which no packed model has"),
    "absolute path": (add_and_list("/tmp/evil.json"), "an entry /tmp/evil.json, which no packed model has"),
    "pickle": (add_and_list("detectors/ocsvm/model.pkl"), "which no packed model has"),
    "entry that is not listed": (add("threshold.json"), "its entries are not those that its index lists"),
    "missing entry": (leave_out, "its entries are not those that its index lists"),
    "entry twice": (twice, "its entries are not those that its index lists"),
    "bomb": (bomb, "bytes, expected at most 50 times its size"),
    "understated size": (understated, "surroundings.safetensors is damaged"),
    "text for arrays": (other_content("detectors/combined.safetensors", b"text"), "holds other content than a model"),
    "code for settings": (
        other_content("settings.json", b"x: !!python/object/apply:os.system [id]"),
        "holds other content than a model",
    ),
    "no threshold": (other_content("threshold.json", b"{}"), "holds other content than a model"),
    "other compression": (repacked, "is a zip without the index of a packed model"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_with_one_sentence(copy, kind, tmp_path, capsys):
    change, words = BROKEN[kind]
    change(copy)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["model", "unpack", str(copy), str(tmp_path / "un")]) == 2
    messages = capsys.readouterr().err.strip()
    assert messages.startswith(f"voxout: {copy}: ") and "\n" not in messages and words in messages, messages
    with pytest.raises(UserError) as caught:
        voxout.load_model(copy, device="cpu")
    assert for_terminal(str(caught.value)) == messages.removeprefix("voxout: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_no_file_at_all(tmp_path, capsys):
    assert main(["apply", str(tmp_path / "no.voxout"), "scan.nii.gz", str(tmp_path / "out")]) == 2
    assert "no such file, expected a packed model (.voxout)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", range(20))
def test_random_changes_are_noticed(copy, seed, tmp_path):
    """Every byte belongs to an entry with a checksum or to the list of entries."""
    random = np.random.default_rng(seed)
    content = bytearray(copy.read_bytes())
    for place in random.integers(0, len(content), 3):
        content[place] ^= int(random.integers(1, 256))
    copy.write_bytes(content)
    try:
        folder = unpack(copy, tmp_path / "un")
    except UserError as error:
        assert len(error.problems) == 1 and "\n" not in error.problems[0]
        assert not (tmp_path / "un").exists()
    else:  # only what is no content, such as the time of an entry, has changed
        require_whole_model(folder)
        assert math.isfinite(voxout.load_model(folder.root, device="cpu").ensemble.calibration.slope)
