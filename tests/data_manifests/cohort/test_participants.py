import pytest
from voxout.data_manifests.cohort.participants import Person, person_of, read_participant_table
from voxout.data_manifests.errors import UserError


def table(tmp_path, *lines):
    path = tmp_path / "who.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_group_site_and_age_of_a_row(tmp_path):
    path = table(tmp_path, "subject_id;session_id;group;site;age", "sub-01;;Control;Lyon;38,5", "Zoë_2;ses-b;;;")
    participants = read_participant_table(path)
    assert person_of("01", participants) == Person("control", "Lyon", 38.5)
    assert person_of("01_ses-2", participants) == Person("control", "Lyon", 38.5), "the table has no sessions of 01"
    assert person_of("Zoë_2_ses-b", participants) == Person()
    assert person_of("Zoë_2_ses-a", participants) == Person() == person_of("nobody", participants)


def test_a_sex_that_is_not_known_is_left_out(tmp_path):
    participants = read_participant_table(table(tmp_path, "subject_id,sex", "a,female", "b,M", "c,2", "d,"))
    assert [person_of(name, participants).sex for name in "abcd"] == ["F", "M", None, None]


def test_all_problems_at_once(tmp_path):
    path = table(
        tmp_path, "subject_id,group,age", "a,healthy,30", "sub-a,control,30", ",control,", "b,control,1930-01-02"
    )
    with pytest.raises(UserError) as error:
        read_participant_table(path)
    first, second, third, fourth = error.value.problems
    assert first.startswith("row 2: group healthy is unknown, expected control or patient.")
    assert second == "row 3: sub-a is also in row 2, expected unique ids. Delete one row."
    assert third == "row 4: subject_id is empty. Fill it in."
    assert fourth.startswith("row 5: age is not a number of years") and "1930" not in fourth


def test_unreachable_tables(tmp_path):
    (tmp_path / "who.csv").symlink_to(".git/annex/objects/x.csv")
    with pytest.raises(UserError, match="content that is not on this machine"):
        read_participant_table(tmp_path / "who.csv")
    with pytest.raises(UserError, match="cannot be reached"):
        read_participant_table(tmp_path / ("x" * 300))
    with pytest.raises(UserError, match="is not a file"):
        read_participant_table(tmp_path)


def test_missing_and_invalid_tables(tmp_path):
    with pytest.raises(UserError, match=r"none.csv\W: no such file, expected a table \(CSV\)"):
        read_participant_table(tmp_path / "none.csv")
    with pytest.raises(UserError, match=r"who.csv\W: column subject_id is missing \(found: id, age\). Add it."):
        read_participant_table(table(tmp_path, "id,age", "a,3"))
