"""Cells of a table of people: what is understood, and the sentence for what is not."""

import pytest
from voxout.data_manifests.cells import Cells
from voxout.data_manifests.terms import GROUPS


@pytest.mark.parametrize("cell", ["", "  ", "n/a", "N/A", "NaN", "null"])
def test_absent(cell):
    row = Cells({"age": cell, "site": cell}, "row 2")
    assert row.age() is None and row.text("site") is None and row.text("sex") is None
    assert not row.problems


@pytest.mark.parametrize(("cell", "age"), [("38.5", 38.5), ("38,5", 38.5), (" 7 ", 7), ("89+", 89), ("0", 0)])
def test_ages(cell, age):
    row = Cells({"age": cell}, "row 2")
    assert row.age() == age and not row.problems


@pytest.mark.parametrize("cell", ["12.03.1980", "1980-03-12", "forty", "-3", "450", "inf"])
def test_an_age_that_is_none_is_named_but_not_repeated(cell):
    row = Cells({"age": cell}, "row 2")
    row.age()
    (problem,) = row.problems
    assert problem == "row 2: age is not a number of years from 0 to 120. Write it as 38.5, or leave it empty."


def test_words_in_any_case_and_the_nearest_word():
    assert Cells({"group": "Control "}, "row 2").word("group", GROUPS) == "control"
    row = Cells({"group": "pateints"}, "row 2")
    assert row.word("group", GROUPS) is None
    assert row.problems == [
        "row 2: group pateints is unknown, expected control or patient. Did you mean patient?"
    ]  # fmt: skip


def test_labels():
    row = Cells({"subject_id": "sub-01", "session_id": "baseline"}, "row 2")
    assert row.label("subject_id", "sub-") == "01"
    assert row.label("session_id", "ses-") == "baseline"
    assert not row.problems


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("sub-a_1", "holds characters that BIDS forbids, expected letters (A-Z) and digits. Write a1."),
        ("../x", "holds characters that BIDS forbids, expected letters (A-Z) and digits. Write x."),
        ("Müller", "holds characters that BIDS forbids, expected letters (A-Z) and digits. Write Mller."),
        ("--", "holds characters that BIDS forbids, expected letters (A-Z) and digits. Choose another."),
        ("sub-", "is a prefix and no more, expected a name after it. Complete it."),
    ],
)
def test_labels_that_bids_forbids(cell, told):
    row = Cells({"subject_id": cell}, "row 2")
    row.label("subject_id", "sub-")
    assert row.problems == [f"row 2: subject_id {cell} {told}"]
