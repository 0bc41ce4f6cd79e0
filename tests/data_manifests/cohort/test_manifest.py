"""CSV manifests: supported formats are read, and all problems are reported at once."""

import os
import unicodedata
from pathlib import Path

import pytest
import voxout.data_manifests.examples as examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from voxout.data_manifests.cohort.manifest import COLUMNS, read_manifest, write_manifest
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.errors import UserError, for_terminal

HEADER = "subject_id,group,t1w,age\n"


def written(folder: Path, text: str | bytes, name: str = "cohort.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def problems_of(path: Path) -> tuple[str, ...]:
    """Return the problems of a table, but for files that do not exist."""
    with pytest.raises(UserError) as caught:
        read_manifest(path)
    return tuple(text for text in map(for_terminal, caught.value.problems) if ": no such file, expected" not in text)


def test_smallest_manifest(tmp_path):
    manifest = read_manifest(written(tmp_path, "subject_id,group,t1w\n01,control,a.nii.gz\n"))
    (record,) = manifest
    assert record == SubjectRecord("01", "control", {"t1w": tmp_path / "a.nii.gz"})
    assert record.key == "sub-01" and manifest.notes == ()


def test_every_column(tmp_path):
    row = "sub-01,ses-2,Patient,t.nii,f.nii,b.nii,l.nii,x.h5,FLAIR,north,38.5,F,held_out"
    (record,) = read_manifest(written(tmp_path, ",".join(COLUMNS) + f"\n{row}\n"))
    assert record == SubjectRecord(
        subject_id="01",
        session_id="2",
        group="patient",
        images={"t1w": tmp_path / "t.nii", "flair": tmp_path / "f.nii"},
        brain_mask=tmp_path / "b.nii",
        lesion_mask=tmp_path / "l.nii",
        mask_of="flair",
        template_transform=tmp_path / "x.h5",
        site="north",
        age=38.5,
        sex="F",
        split="held_out",
    )


def test_mask_of_a_missing_image(tmp_path):
    problems = problems_of(written(tmp_path, "subject_id,group,t1w,mask_of\n01,patient,a.nii,flair\n"))
    assert problems == ("row 2: mask_of is flair, but column flair is empty. Fill it in.",)


def test_example_is_readable():
    manifest = read_manifest(Path(examples.__path__[0]) / "cohort.csv")
    assert (len(manifest.controls), len(manifest.patients)) == (4, 2)
    assert manifest["sub-C003_ses-2"].split == "held_out"
    assert manifest["sub-P002"].lesion_mask is None


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_formats_of_spreadsheets(tmp_path, separator, encoding, newline):
    lines = [["Subject_ID", "GROUP ", "t1w", "site", "age"], ["01", "control", "Köpfe/a b.nii.gz", "Zürich", "38.5"]]
    lines += [["", "", "", "", ""], ["02", "patient", "c.nii.gz", "", ""]]
    text = newline.join(separator.join(line) for line in lines) + newline
    first, second = read_manifest(written(tmp_path, text.encode(encoding)))
    assert first.images["t1w"] == tmp_path / "Köpfe" / "a b.nii.gz"
    assert (first.site, first.age, second.age) == ("Zürich", 38.5, None)


def test_decimal_commas_in_a_semicolon_table(tmp_path):
    (record,) = read_manifest(written(tmp_path, "subject_id;group;t1w;age\n01;control;a.nii;38,5\n"))
    assert record.age == 38.5


def test_quoted_commas_and_empty_columns_at_the_end(tmp_path):
    (record,) = read_manifest(written(tmp_path, 'subject_id,group,t1w,,\n01,control,"a, b.nii",,\n'))
    assert record.images["t1w"].name == "a, b.nii"


def test_paths(tmp_path):
    rows = ["01,control,/data/a.nii,", "02,control,../b.nii,", "03,control,./deep/c.nii,"]
    manifest = read_manifest(written(tmp_path, HEADER + "\n".join(rows)))
    assert [r.images["t1w"] for r in manifest] == [
        Path("/data/a.nii"),
        tmp_path.parent / "b.nii",
        tmp_path / "deep" / "c.nii",
    ]


def test_paths_do_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    written(tmp_path, HEADER + "01,control,a.nii,\n")
    monkeypatch.chdir(tmp_path)
    (record,) = read_manifest(Path("cohort.csv"))
    assert record.images["t1w"] == tmp_path / "a.nii"


def test_all_problems_at_once_with_their_rows(tmp_path):
    rows = [
        "01,control,a.nii,30",  # row 2, valid
        "",  # row 3, skipped
        "0_2,controls,b.nii,1980-03-12",
        "03,control,,30",
        ",patient,d.nii,",
        "01,control,e.nii,",
        "05,control,a.nii,",
        "06,control,f.nii,30,extra",
    ]
    assert problems_of(written(tmp_path, HEADER + "\n".join(rows))) == (
        "row 4: subject_id 0_2 contains characters that BIDS forbids, expected letters (A-Z) and digits. Write 02.",
        "row 4: group controls is unknown, expected control or patient. Did you mean control?",
        "row 4: age is not a number of years from 0 to 120. Write it as 38.5, or leave it empty.",
        "row 5: t1w is empty. Fill it in.",
        "row 6: subject_id is empty. Fill it in.",
        "row 9: found 5 cells, expected 4. Put values that contain the separator in quotation marks.",
        "row 7: sub-01 is also in row 2, expected unique ids. Number the sessions in column session_id.",
        "row 8: t1w is the same file as in row 2. List each scan once.",
    )


def test_messages_contain_no_birth_date(tmp_path):
    assert "1980" not in str(problems_of(written(tmp_path, HEADER + "01,control,a.nii,1980-03-12\n")))


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("subject,group,t1w", "found column subject, expected subject_id. Rename it."),
        ("subject_id,group,t1w,lesionmask", "found column lesionmask, expected lesion_mask. Rename it."),
        ("subject_id,group,age", "column t1w is missing (found: subject_id, group, age). Add it."),
        ("subject_id,group,mprage", "found column mprage, expected t1w. Rename it."),
        (
            "subject_id,Diagnosis,t1w",
            "found column diagnosis, expected group, with control or patient in every row. Rename it.",
        ),
        (
            "Proband,group,t1w",
            "found column proband, expected subject_id. Rename it.",
        ),
        (
            "subject_id,Gruppe,t1w",
            "found column gruppe, expected group, with control or patient in every row. Rename it.",
        ),
        ("subject_id,group,t1w,t1w", "column t1w occurs twice. Delete or rename one."),
    ],
)
def test_invalid_columns(tmp_path, header, problem):
    row = ",".join(["01", "control", "40" if "age" in header else "a.nii", "b.nii"][: header.count(",") + 1])
    assert problems_of(written(tmp_path, f"{header}\n{row}\n")) == (f"cohort.csv: {problem}",)


def test_problems_of_the_header_and_of_the_rows_in_one_round(tmp_path):
    text = "participant_id,Diagnosis,t1,t1,lesionmask,age\n01,FCD,a.nii,a.nii,b.nii,forty\n,HC,,c.nii,,38\n"
    assert problems_of(written(tmp_path, text)) == (
        "cohort.csv: column t1 occurs twice. Delete or rename one.",
        "cohort.csv: found column t1, expected t1w. Rename it.",
        "cohort.csv: found column lesionmask, expected lesion_mask. Rename it.",
        "cohort.csv: found column participant_id, expected subject_id. Rename it.",
        "cohort.csv: found column diagnosis, expected group, with control or patient in every row. Rename it.",
        "row 2: age is not a number of years from 0 to 120. Write it as 38.5, or leave it empty.",
        "row 3: t1w is empty. Fill it in.",
    )


@pytest.mark.parametrize(
    ("column", "note"),
    [
        ("handedness", "not used: handedness"),
        ("Mask", "not used: mask (did you mean lesion_mask?)"),
        ("Alter (Jahre)", "not used: alter (jahre) (did you mean age?)"),
        ("\N{LATIN CAPITAL LETTER A WITH CIRCUMFLEX}ge", "not used: \xe2ge (did you mean age?)"),
        ("edad", "not used: edad (did you mean age?)"),
        ("Geschlecht", "not used: geschlecht (did you mean sex?)"),
        ("L\xe4sion", "not used: l\xe4sion (did you mean lesion_mask?)"),
        ("Diagnosis", "not used: diagnosis"),  # there is a column group
    ],
)
def test_unknown_columns_are_noted(tmp_path, column, note):
    manifest = read_manifest(written(tmp_path, f"subject_id,group,t1w,{column}\n01,control,a.nii,left\n"))
    assert tuple(map(for_terminal, manifest.notes)) == (f"cohort.csv: {note}",)


@pytest.mark.parametrize("dash", ["-", "--", "\N{EN DASH}", "\N{EM DASH}"])
def test_a_dash_is_an_empty_cell(tmp_path, dash):
    text = f"subject_id,group,t1w,age,site,lesion_mask\n01,patient,a.nii,{dash},{dash},{dash}\n"
    (record,) = read_manifest(written(tmp_path, text))
    assert (record.age, record.site, record.lesion_mask) == (None, None, None)


def test_paths_of_windows(tmp_path):
    (tmp_path / "scans" / "sub-01").mkdir(parents=True)
    (tmp_path / "scans" / "sub-01" / "a.nii").touch()
    (tmp_path / "odd\\name.nii").touch()  # here, a file may be named so
    rows = "01,control,scans\\sub-01\\a.nii\n02,control,odd\\name.nii\n"
    first, second = read_manifest(written(tmp_path, f"subject_id,group,t1w\n{rows}"))
    assert first.images["t1w"] == tmp_path / "scans" / "sub-01" / "a.nii"
    assert second.images["t1w"] == tmp_path / "odd\\name.nii"
    (problem,) = problems_of(written(tmp_path, "subject_id,group,t1w\n01,control,D:\\data\\a.nii\n"))
    assert problem == (
        r"row 2: t1w D:\data\a.nii: is a path of Windows, expected one of this machine. Write it relative to the "
        "table; in WSL, drive D: is /mnt/d."
    )


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (
            ["01,1,control,a.nii,train", "01,2,control,b.nii,held_out"],
            "row 3: sub-01 is held_out here and train in row 2, expected one split per participant. "
            "Correct one of them.",
        ),
        (
            ["01,1,control,a.nii,", "01,2,patient,b.nii,"],
            "row 3: sub-01 is a patient here and a control in row 2, expected one group per participant. "
            "Correct one of them.",
        ),
        (
            ["01,,patient,a.nii,train"],
            "row 2: a patient has split train, but only controls are used for training. Leave the cell empty.",
        ),
        (
            ["a1,,control,a.nii,", "A1,,control,b.nii,"],
            "row 3: sub-A1 and sub-a1 in row 2 differ only in case, expected unique ids. Write the id of a participant "
            "in one way only.",
        ),
        (
            ["a,1,control,a.nii,", "A,2,patient,b.nii,"],
            "row 3: sub-A and sub-a in row 2 differ only in case, expected unique ids. Write the id of a participant "
            "in one way only.",
        ),
        (
            ["a,x,control,a.nii,", "a,X,control,b.nii,"],
            "row 3: sub-a_ses-X and sub-a_ses-x in row 2 differ only in case, expected unique ids. Write the id of a "
            "participant in one way only.",
        ),
    ],
)
def test_inconsistent_rows(tmp_path, rows, problem):
    path = written(tmp_path, "subject_id,session_id,group,t1w,split\n" + "\n".join(rows))
    assert problems_of(path) == (problem,)


def test_t1w_and_flair_must_be_two_files(tmp_path):
    path = written(tmp_path, "subject_id,group,t1w,flair\n01,control,a.nii,a.nii\n")
    assert set(problems_of(path)) == {
        f"row 2: {modality} is the same file as in another column. List each scan once."
        for modality in ("t1w", "flair")
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty, expected a table with the columns subject_id, group, t1w"),
        (b"\n , \n", "is empty, expected a table"),
        (b"subject_id,group,t1w\n", "contains no subjects, expected one row per subject"),
        (b"PK\x03\x04\x00\x00binary\x00", "is not a text file, expected a manifest as CSV"),
        (b'subject_id,group,t1w\n01,control,"a.nii\n', "cannot be parsed, expected a table (CSV)"),
    ],
)
def test_invalid_files(tmp_path, content, words):
    assert words in problems_of(written(tmp_path, content))[0]


def test_missing(tmp_path):
    assert "no such file or folder, expected a manifest (CSV) or a BIDS dataset" in problems_of(tmp_path / "x.csv")[0]


def test_a_folder_is_read_as_bids(tmp_path):
    (tmp_path / "sub-01" / "anat").mkdir(parents=True)
    (tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz").touch()
    assert [r.key for r in read_manifest(tmp_path)] == ["sub-01"]


# -- names changed by spreadsheets and file systems --------------------------------------------------------------------
@pytest.mark.parametrize("order", ["sep=;\n", "SEP=;\r\n", '"sep=;"\n', "sep=;;;\n"])
def test_separator_line_of_excel_is_not_a_row(tmp_path, order):
    text = order + "subject_id;group;t1w;age\n01;control;a,b.nii;38,5\n02;nobody;c.nii;\n"
    (problem,) = problems_of(written(tmp_path, text))
    assert problem.startswith("row 3: group nobody is unknown"), "the header is row 1, as in the spreadsheet"
    (record,) = read_manifest(written(tmp_path, text.replace("nobody", "control").replace("02;control;c.nii;\n", "")))
    assert record.images["t1w"].name == "a,b.nii" and record.age == 38.5


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("listed", ["NFC", "NFD"])
def test_composed_and_decomposed_accents(tmp_path, stored, listed):
    scan = tmp_path / unicodedata.normalize(stored, "Köpfe") / unicodedata.normalize(stored, "Müller.nii")
    scan.parent.mkdir()
    scan.touch()
    name = unicodedata.normalize(listed, "Köpfe/Müller.nii")
    (record,) = read_manifest(written(tmp_path, f"subject_id,group,t1w\n01,control,{name}\n"))
    assert record.images["t1w"] == scan


def test_names_that_are_not_utf_8(tmp_path):
    scan = tmp_path / os.fsdecode("Müller.nii".encode("cp1252"))
    scan.touch()
    table = "subject_id,group,t1w\n01,control,Müller.nii\n".encode("cp1252")
    (record,) = read_manifest(written(tmp_path, table))
    assert record.images["t1w"] == scan
    (again,) = read_manifest(write_manifest(tmp_path / "again.csv", Manifest((record,))))
    assert again == record


def test_home_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/a/lab")
    rows = "01,control,~/1.nii,\n02,control,~$2.nii,\n03,control,~nosuchuser/3.nii,\n04,control,~old.nii,\n"
    (problem,) = problems_of(written(tmp_path, HEADER + rows))
    assert problem == "row 4: t1w ~nosuchuser/3.nii: no such home folder. Write the absolute path."
    (tmp_path / "~nosuchuser").mkdir()
    (tmp_path / "~nosuchuser" / "3.nii").touch()
    assert [r.images["t1w"] for r in read_manifest(written(tmp_path, HEADER + rows))] == [
        Path("/home/of/a/lab/1.nii"),
        tmp_path / "~$2.nii",
        tmp_path / "~nosuchuser/3.nii",
        tmp_path / "~old.nii",
    ]


def test_user_without_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_123)  # not in the user database
    (problem,) = problems_of(written(tmp_path, HEADER + "01,control,~/1.nii,\n"))
    assert problem.startswith("row 2: t1w ~/1.nii: no such home folder")


def test_too_long_names_and_paths(tmp_path):
    long = "ä" * 128  # 256 bytes
    deep = "/".join(["x" * 200] * 25)
    rows = f"01,control,{long},\n02,control,{deep},\n03,control,{'y' * 255},\n"
    first, second = problems_of(written(tmp_path, HEADER + rows))
    assert first.startswith(f"row 2: t1w {long[:30]}...: a name has over 255 bytes")
    assert second.startswith("row 3: t1w") and "the path has over 4095 bytes" in second


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_invalid_path_of_a_manifest(tmp_path, name):
    assert "cannot be reached" in problems_of(tmp_path / name)[0]


def test_manifest_that_was_not_fetched(tmp_path):
    (tmp_path / "cohort.csv").symlink_to(".git/annex/objects/aa/bb/MD5E-s9--0.csv/MD5E-s9--0.csv")
    assert "content that is not on this machine" in problems_of(tmp_path / "cohort.csv")[0]
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    assert "Fetch it (datalad get, git lfs pull)" in problems_of(written(tmp_path, pointer, "lfs.csv"))[0]
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file, expected a table (CSV)" in problems_of(tmp_path / "pipe")[0]


def test_scan_that_was_not_fetched_stays_in_the_manifest(tmp_path):
    (tmp_path / "a.nii").symlink_to(".git/annex/objects/aa/bb/MD5E-s9--0.nii/MD5E-s9--0.nii")
    (record,) = read_manifest(written(tmp_path, "subject_id,group,t1w\n01,control,a.nii\n"))
    assert record.images["t1w"] == tmp_path / "a.nii"


# -- writing ---------------------------------------------------------------------------------------------------------
def test_paths_are_written_relative_to_the_csv(tmp_path):
    record = SubjectRecord("01", "control", {"t1w": tmp_path / "scans" / "a.nii", "flair": Path("/elsewhere/f.nii")})
    path = write_manifest(tmp_path / "cohort.csv", Manifest((record,)))
    assert "scans/a.nii" in path.read_text() and str(tmp_path) not in path.read_text()
    (again,) = read_manifest(path)
    assert again == record


def test_relative_paths_from_a_linked_folder(tmp_path):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    (tmp_path / "a.nii").touch()
    record = SubjectRecord("01", "control", {"t1w": tmp_path / "a.nii"})
    (again,) = read_manifest(write_manifest(tmp_path / "link" / "cohort.csv", Manifest((record,))))
    assert again.images["t1w"].samefile(tmp_path / "a.nii")


LABELS = st.text("abcXYZ019", min_size=1, max_size=4)
NAMES = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), min_size=1, max_size=8)


@st.composite
def manifests(draw) -> Manifest:
    records = []
    participants = draw(st.lists(LABELS, unique_by=str.lower, min_size=1, max_size=5))
    for number, subject_id in enumerate(participants):
        optional = draw(NAMES).strip().replace("/", "").strip(". ")
        group = draw(st.sampled_from(["control", "patient"]))
        records.append(
            SubjectRecord(
                subject_id=subject_id,
                group=group,
                images={"t1w": Path(f"/data/{number} {optional}.nii.gz")},
                session_id=draw(st.none() | LABELS),
                lesion_mask=draw(st.none() | st.just(Path("/data/ü, ;.nii"))),
                site=draw(st.none() | st.sampled_from(["north", 'the "old" one', "a;b,c"])),
                age=draw(st.none() | st.floats(0, 120)),
                split=draw(st.none() | st.sampled_from(["train", "held_out"])) if group == "control" else None,
            )
        )
    return Manifest(tuple(records))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(manifest=manifests())
def test_round_trip_keeps_the_records(tmp_path, manifest):
    assert read_manifest(write_manifest(tmp_path / "cohort.csv", manifest)).records == manifest.records


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.text(',;"\n\ta-_/0nul', max_size=120).map(lambda t: (HEADER + t).encode()))
def test_random_content_is_read_or_reported(tmp_path, content):
    try:
        read_manifest(written(tmp_path, content))
    except UserError as error:
        assert all(error.problems)


WEIRD = [
    "",
    '"',
    "~/x",
    "~root",
    "~no/x",
    "1.0",
    "1-Mar",
    "=A1",
    "..",
    "/",
    ".",
    "é\u0301",
    "\u2028",
    "x" * 300,
    "-1",
    "9" * 400,
]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_manifests_are_read_or_reported(tmp_path, data):
    rows = [list(COLUMNS)]
    rows += [[f"{n}", "", "control", f"{n}.nii", "", "", "", "", "t1w", "A", "40", "F", ""] for n in range(4)]
    for _ in range(data.draw(st.integers(0, 3))):
        row = data.draw(st.integers(0, 4))
        rows[row][data.draw(st.integers(0, len(rows[row]) - 1))] = data.draw(
            st.sampled_from(WEIRD) | st.text(max_size=8)
        )
    if data.draw(st.booleans()):
        dropped = data.draw(st.integers(0, len(COLUMNS) - 1))
        rows = [row[:dropped] + row[dropped + 1 :] for row in rows]
    separator = data.draw(st.sampled_from(",;\t"))
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
    content = bytearray("\n".join(separator.join(row) for row in rows).encode(encoding, "replace"))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        manifest = read_manifest(written(tmp_path, bytes(content)))
    except UserError as error:
        assert all(error.problems)
    else:
        assert all(record.group in ("control", "patient") and record.subject_id.isalnum() for record in manifest)


def test_missing_files_are_named_with_the_other_problems_and_alone_leave_the_table_readable(tmp_path):
    table = tmp_path / "cohort.csv"
    table.write_text("subject_id,group,t1w\n01,control,a.nii.gz\n02,kontrol,b.nii.gz\n")
    (tmp_path / "b.nii.gz").touch()
    with pytest.raises(UserError) as error:
        read_manifest(table)
    first, second = error.value.problems
    assert first.startswith("row 3: group kontrol is unknown") and second.startswith("row 2: t1w ")
    assert "a.nii.gz" in second and "no such file, expected an image" in second
    table.write_text("subject_id,group,t1w\n01,control,a.nii.gz\n")
    assert len(read_manifest(table).controls) == 1
