"""`python -m benchmarks.mnist_c` from digits to page."""

import csv
import json
import re

import numpy as np
import pytest

from benchmarks.mnist_c.__main__ import main
from benchmarks.mnist_c.corruptions import CLEAN, CORRUPTIONS, corrupt

FEW = ["--seeds", "1", "--digits", "1", "--methods", "isolation-forest,svdd-hard,ogae", "--jobs", "1"]


def _told(capsys, *arguments) -> tuple[int, str]:
    code = main([*(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("mnist-c")
    assert main([str(out), *FEW]) == 0
    return out


def test_a_page_that_is_whole(done):
    page = (done / "index.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page), "asks no network"
    for text in ("Isolation forest", "Deep SVDD, hard", "Paired differences", "scikit-learn&#39;s 1,797 digits"):
        assert text in page
    assert page.count('class="on-dark"') == 3, "two heat maps and one picture of codes"
    assert "Nothing failed." in page
    assert {p.name for p in (done / "figures").iterdir()} >= {"heat-map-clean.svg", "latents-1.png"}
    assert not (done / "failures.csv").exists()


def test_tables_with_every_cell(done):
    cells = list(csv.DictReader((done / "cells.csv").open()))
    assert len(cells) == (16 + 10) * 4
    assert {row["method"] for row in cells} == {"isolation-forest", "svdd-hard", "ogae"}
    clean = {row["method"]: float(row["auroc"]) for row in cells if row["condition"] == "identity"}
    assert min(clean["isolation-forest"], clean["svdd-hard"]) > 0.9, "a clean 1 is told from other digits"
    differences = list(csv.DictReader((done / "differences.csv").open()))
    assert ("svdd-hard", "clean") in {(row["less_method"], row["protocol"]) for row in differences}


def test_a_second_run_makes_nothing_and_a_lost_result_costs_only_itself(capsys, done):
    files = {p: p.stat().st_mtime_ns for p in (done / "results").rglob("*.json")}
    code, messages = _told(capsys, done, *FEW)
    assert code == 0 and "results: 6 of 6 are there, 0 to make" in messages
    lost = next(p for p in files if p.name == "svdd-hard.json")
    before = json.loads(lost.read_text())
    lost.write_text("{")
    code, messages = _told(capsys, done, *FEW)
    assert code == 0 and "results: 5 of 6 are there, 1 to make" in messages
    assert {p for p in files if p.stat().st_mtime_ns != files[p]} == {lost}
    assert json.loads(lost.read_text())["cells"] == before["cells"], "the same seeds give the same figures"


def test_a_digit_more_keeps_what_is_there(capsys, done):
    few = ["--seeds", "1", "--digits", "0,1", "--methods", "isolation-forest", "--jobs", "1"]
    code, messages = _told(capsys, done, *few)
    assert code == 0 and "results: 2 of 4 are there, 2 to make" in messages


def test_a_method_that_fails_costs_only_itself(capsys, done):
    for path in (done / "results" / "clean").rglob("warm-up-*.safetensors"):
        path.write_bytes(b"damaged")
    for path in (done / "results" / "clean").rglob("svdd-hard.json"):
        path.unlink()
    code, messages = _told(capsys, done, *FEW)
    assert code == 3
    assert "FAILED clean, digit 1, seed 0, svdd-hard: its warm-up is damaged" in messages
    failures = list(csv.DictReader((done / "failures.csv").open()))
    assert [(f["key"], f["stage"]) for f in failures] == [("clean, digit 1, seed 0, svdd-hard", "method")]
    assert "svdd-hard: its warm-up is damaged" in (done / "index.html").read_text()
    assert _told(capsys, done, *FEW)[0] == 0, "the damaged file went, so the next run mends it"


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
    code, messages = _told(capsys, out, "--data", tmp_path / "data", "--digits", "0,3", *options)
    assert code == 3
    assert "fog: is missing from the data, expected a folder of this name. Unpack MNIST-C again. The other" in messages
    assert "digit 3: is absent from the labels, which hold 0, 1." in messages
    cells = list(csv.DictReader((out / "cells.csv").open()))
    assert {row["digit"] for row in cells} == {"0"}
    assert {row["condition"] for row in cells} == {CLEAN, *CORRUPTIONS} - {"fog"}
    code, messages = _told(capsys, tmp_path / "none", "--data", tmp_path / "data", "--digits", "3", *options)
    assert code == 2 and messages.count("voxout: digit 3: is absent") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--methods", "ae,ogea"], "--methods: ogea not known. Known are pixels-ocsvm, isolation-forest, ae,"),
        (["--digits", "3,11"], "--digits: 11 not known, expected digits from 0 to 9, as in 0,1,8."),
        (["--data", "nowhere.npz"], "nowhere.npz: no such file or folder, expected a folder of MNIST-C"),
    ],
)
def test_mistakes_are_one_sentence(capsys, tmp_path, arguments, sentence):
    code, messages = _told(capsys, tmp_path / "out", *arguments)
    assert code == 2 and sentence in messages and "Traceback" not in messages


def test_seeds_are_at_least_one(capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), "--seeds", "0"])
    assert stopped.value.code == 2
    assert "0 is not a number of at least 1" in capsys.readouterr().err
