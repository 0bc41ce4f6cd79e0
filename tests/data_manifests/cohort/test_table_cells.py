"""Cells of a participant table: accepted values, and messages for invalid ones."""

import pytest
from voxout.data_manifests.cohort.table_cells import Cells
from voxout.data_manifests.terms import GROUPS


@pytest.mark.parametrize("cell", ["", "  ", "n/a", "N/A", "NaN", "null"])
def test_missing_values(cell):
    row = Cells({"age": cell, "site": cell}, "row 2")
    assert row.age() is None and row.text("site") is None and row.text("sex") is None
    assert not row.problems


@pytest.mark.parametrize(("cell", "age"), [("38.5", 38.5), ("38,5", 38.5), (" 7 ", 7), ("89+", 89), ("0", 0)])
def test_ages(cell, age):
    row = Cells({"age": cell}, "row 2")
    assert row.age() == age and not row.problems


@pytest.mark.parametrize("cell", ["12.03.1980", "1980-03-12", "forty", "-3", "450", "inf"])
def test_invalid_age_is_not_quoted(cell):
    row = Cells({"age": cell}, "row 2")
    row.age()
    (problem,) = row.problems
    assert problem == "row 2: age is not a number of years from 0 to 120. Write it as 38.5, or leave it empty."


def test_words_in_any_case_and_suggestion():
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
    ("cell", "problem"),
    [
        ("sub-a_1", "contains characters that BIDS forbids, expected letters (A-Z) and digits. Write a1."),
        ("../x", "contains characters that BIDS forbids, expected letters (A-Z) and digits. Write x."),
        ("Müller", "contains characters that BIDS forbids, expected letters (A-Z) and digits. Write Mller."),
        ("-+", "contains characters that BIDS forbids, expected letters (A-Z) and digits. Choose another id."),
        ("sub-", "is only a prefix, expected a label after it. Complete it."),
    ],
)
def test_labels_that_bids_forbids(cell, problem):
    row = Cells({"subject_id": cell}, "row 2")
    row.label("subject_id", "sub-")
    assert row.problems == [f"row 2: subject_id {cell} {problem}"]


@pytest.mark.parametrize(("cell", "written"), [("1.0", "1"), ("10.0", "10"), ("003.00", "003"), ("20,0", "20")])
def test_decimal_zeros_from_a_spreadsheet_are_dropped_and_not_appended(cell, written):
    row = Cells({"subject_id": cell}, "row 2")
    row.label("subject_id", "sub-")
    (problem,) = row.problems
    assert problem.endswith(f"expected letters (A-Z) and digits. Write {written}.")


@pytest.mark.parametrize("cell", ["1.5", "1E+05", "1.00E+05", "2,75"])
def test_number_from_a_spreadsheet_with_unknown_id(cell):
    row = Cells({"subject_id": cell}, "row 2")
    row.label("subject_id", "sub-")
    (problem,) = row.problems
    assert "looks like an id that a spreadsheet changed to a number" in problem and "Write the id again" in problem


@pytest.mark.parametrize(
    "cell",
    ["1-Mar", "Mar-01", "01-Mar-21", "2021-03-01", "2021-03-01 00:00:00", "1/3/2021", "01.03.2021", "1. Mrz", "3-mars"],
)
def test_date_from_a_spreadsheet(cell):
    row = Cells({"subject_id": cell}, "row 2")
    row.label("subject_id", "sub-")
    (problem,) = row.problems
    assert "looks like an id that a spreadsheet changed to a date" in problem


@pytest.mark.parametrize(("cell", "written"), [("12-ab", "12ab"), ("A-01", "A01"), ("1-2", "12"), ("P-003", "P003")])
def test_ids_that_are_no_dates(cell, written):
    row = Cells({"subject_id": cell}, "row 2")
    row.label("subject_id", "sub-")
    assert row.problems[0].endswith(f"Write {written}.")


@pytest.mark.parametrize("cell", ["1_0", "٤٥", "1e", "0x20", "4 5", "nan+", "Infinity"])
def test_ages_that_only_a_program_reads_as_a_number(cell):
    row = Cells({"age": cell}, "row 2")
    assert row.age() is None
    assert len(row.problems) == 1


@pytest.mark.parametrize("cell", ["NA", "null", "None"])
def test_a_required_cell_with_a_word_for_missing_values(cell):
    row = Cells({"subject_id": cell, "t1w": ""}, "row 2")
    row.require("subject_id")
    row.require("t1w")
    assert row.problems == [
        f"row 2: subject_id is {cell}, which stands for a missing value, also in quotation marks. Write another value.",
        "row 2: t1w is empty. Fill it in.",
    ]


def test_invisible_characters_are_shown():
    row = Cells({"group": "control\u200b"}, "row 2")
    assert row.word("group", GROUPS) is None
    assert row.problems[0].startswith("row 2: group control<U+200B> is unknown, expected control or patient.")


@pytest.mark.parametrize(
    ("cell", "letter"),
    [("F", "F"), ("female", "F"), ("w", "F"), ("Weiblich", "F"), ("m", "M"), ("MALE", "M"), ("divers", "O")],
)
def test_words_for_a_sex(cell, letter):
    assert Cells({"sex": cell}, "row 2").sex() == letter


@pytest.mark.parametrize("cell", ["1", "2", "fm", "Hamburg"])
def test_a_sex_that_is_unknown_or_ambiguous_is_a_problem(cell):
    row = Cells({"sex": cell}, "row 2")
    assert row.sex() is None
    assert row.problems == [
        f"row 2: sex {cell} is unknown, expected F (female), M (male) or O (other). Correct it, or leave it empty."
    ]
