"""`python -m benchmarks.mnist_c` from digits to report."""

import csv
import json
import re

import numpy as np
import pytest

from benchmarks.mnist_c.__main__ import main
from benchmarks.mnist_c.corruptions import CLEAN, CORRUPTIONS, corrupt

pytestmark = pytest.mark.slow
FEW = ["--seeds", "1", "--digits", "1", "--methods", "isolation-forest,svdd-hard,ogae", "--jobs", "1"]


def _run(capsys, *arguments) -> tuple[int, str]:
    code = main([*(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("mnist-c")
    assert main([str(out), *FEW]) == 0
    return out


def test_report_is_complete(done):
    page = (done / "index.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page), "needs no network"
    for text in (
        "Isolation forest",
        "Deep SVDD, hard",
        "Paired differences",
        "1,797 digits of 8x8 pixels of scikit-learn",
    ):
        assert text in page
    assert page.count('class="on-dark"') == 3, "two heat maps and one figure of latents"
    assert "No failures." in page
    assert {p.name for p in (done / "figures").iterdir()} >= {"heat-map-clean.svg", "latents-1.png"}
    assert not (done / "failures.csv").exists()


def test_tables_are_complete(done):
    cells = list(csv.DictReader((done / "cells.csv").open()))
    assert len(cells) == (16 + 10) * 4
    assert {row["method"] for row in cells} == {"isolation-forest", "svdd-hard", "ogae"}
    clean = {row["method"]: float(row["auroc"]) for row in cells if row["condition"] == "identity"}
    assert min(clean["isolation-forest"], clean["svdd-hard"]) > 0.9, (
        "clean digits 1 are distinguished from other digits"
    )
    differences = list(csv.DictReader((done / "differences.csv").open()))
    assert ("svdd-hard", "clean") in {(row["less_method"], row["protocol"]) for row in differences}


def test_second_run_computes_only_missing_results(capsys, done):
    files = {p: p.stat().st_mtime_ns for p in (done / "results").rglob("*.json")}
    code, messages = _run(capsys, done, *FEW)
    assert code == 0 and "results: 6 of 6 exist, 0 to compute" in messages
    lost = next(p for p in files if p.name == "svdd-hard.json")
    before = json.loads(lost.read_text())
    lost.write_text("{")
    code, messages = _run(capsys, done, *FEW)
    assert code == 0 and "results: 5 of 6 exist, 1 to compute" in messages
    assert {p for p in files if p.stat().st_mtime_ns != files[p]} == {lost}
    assert json.loads(lost.read_text())["cells"] == before["cells"], "equal seeds give equal results"


def test_additional_digit_keeps_existing_results(capsys, done):
    few = ["--seeds", "1", "--digits", "0,1", "--methods", "isolation-forest", "--jobs", "1"]
    code, messages = _run(capsys, done, *few)
    assert code == 0 and "results: 2 of 4 exist, 2 to compute" in messages


def test_failed_method_does_not_affect_others(capsys, done):
    for path in (done / "results" / "clean").rglob("warm-up-*.safetensors"):
        path.write_bytes(b"damaged")
    for path in (done / "results" / "clean").rglob("svdd-hard.json"):
        path.unlink()
    code, messages = _run(capsys, done, *FEW)
    assert code == 3
    assert "FAILED clean, digit 1, seed 0, svdd-hard: its warm-up is damaged" in messages
    failures = list(csv.DictReader((done / "failures.csv").open()))
    assert [(f["key"], f["stage"]) for f in failures] == [("clean, digit 1, seed 0, svdd-hard", "method")]
    assert "svdd-hard: its warm-up is damaged" in (done / "index.html").read_text()
    assert _run(capsys, done, *FEW)[0] == 0, "the damaged file was deleted, so the next run succeeds"


def test_mnist_cs_folder_with_a_corruption_missing(capsys, tmp_path, digits):
    chosen = np.flatnonzero(digits.labels < 2)
    for name in (CLEAN, *CORRUPTIONS):
        if name == "fog":
            continue
        (tmp_path / "data" / name).mkdir(parents=True)
        images = corrupt(name, digits.images[chosen], chosen, 5)[..., None]
        for part, rows in (("train", slice(0, 260)), ("test", slice(260, None))):
            np.save(tmp_path / "data" / name / f"{part}_images.npy", images[rows])
            np.save(tmp_path / "data" / name / f"{part}_labels.npy", digits.labels[chosen][rows])
    out = tmp_path / "out"
    options = ["--seeds", "1", "--methods", "pixels-ocsvm", "--jobs", "1"]
    code, messages = _run(capsys, out, "--data", tmp_path / "data", "--digits", "0,3", *options)
    assert code == 3
    assert "fog: missing from the data, expected a folder of this name. Unpack MNIST-C again. The other" in messages
    assert "digit 3: missing from the labels, expected one of 0, 1." in messages
    cells = list(csv.DictReader((out / "cells.csv").open()))
    assert {row["digit"] for row in cells} == {"0"}
    assert {row["condition"] for row in cells} == {CLEAN, *CORRUPTIONS} - {"fog"}
    code, messages = _run(capsys, tmp_path / "none", "--data", tmp_path / "data", "--digits", "3", *options)
    assert code == 2 and messages.count("voxout: digit 3: missing") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--methods", "ae,ogea"], "--methods: found ogea, expected names of pixels-ocsvm, isolation-forest, ae,"),
        (["--digits", "3,11"], "--digits: found 11, expected digits from 0 to 9. Use for instance 0,1,8."),
        (["--data", "nowhere.npz"], "nowhere.npz: no such file or folder, expected a folder of MNIST-C"),
    ],
)
def test_invalid_options(capsys, tmp_path, arguments, sentence):
    code, messages = _run(capsys, tmp_path / "out", *arguments)
    assert code == 2 and sentence in messages and "Traceback" not in messages


def test_seeds_are_at_least_one(capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), "--seeds", "0"])
    assert stopped.value.code == 2
    assert "found 0, expected an integer of at least 1" in capsys.readouterr().err
