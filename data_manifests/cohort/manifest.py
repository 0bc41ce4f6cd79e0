"""Reading of a list of scans, a CSV file or a BIDS dataset, as a `Manifest`.

No image is opened. All problems of the table are reported at once with their rows. Whether the files exist and are
usable is checked in `check`.
"""

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..atomic_write import atomic_write
from ..errors import UserError, private
from ..table_file import numbered_rows, table_bytes
from ..terms import GROUPS, MODALITIES, SPLITS
from ..user_paths import file_in, reach
from .bids import read_bids
from .manifest_header import COLUMNS, PATHS, REQUIRED, read_header
from .subject import Manifest, SubjectRecord, differing_in_case
from .table_cells import Cells

_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"?[,;\t ]*(\r\n|\n|\r|$)', re.IGNORECASE)


def read_manifest(path: Path) -> Manifest:
    r"""Read a CSV of scans, or a BIDS folder.

    The CSV may be separated by commas, semicolons or tabs, and encoded as UTF-8 (with or without a byte-order mark),
    UTF-16 or Windows-1252, as written by spreadsheet programs. The columns `subject_id`, `group` (control or patient)
    and `t1w` are required. The columns `session_id`, `flair`, `brain_mask`, `lesion_mask`, `mask_of` (t1w or flair: the
    image that the lesion mask was drawn on), `template_transform`, `site`, `age` (years), `sex` and `split` (train or
    held_out, for controls) are optional. Paths are absolute or relative to the CSV; ``\`` of Windows is read as ``/``.

    Parameters
    ----------
    path : Path
        A CSV file, or the root of a BIDS dataset.

    Returns
    -------
    Manifest
        In the order of the rows; unused columns are listed in its notes.

    Raises
    ------
    UserError
        All problems at once, each with its row number as in a spreadsheet (the header is row 1).
    """
    reach(path, "a manifest (CSV) or a BIDS dataset")
    if path.is_dir():
        return read_bids(path)
    names, rows = read_table(path)
    header = read_header(names)
    here = private(path.name, "the manifest")
    problems = [f"{here}: {problem}" for problem in header.problems]
    records: dict[int, SubjectRecord] = {}
    missing: list[str] = []
    for number, cells in rows:
        if len(cells) > len(header.columns):
            problems.append(
                f"row {number}: found {len(cells)} cells, expected {len(header.columns)}. Put values that contain the "
                "separator in quotation marks."
            )
            continue
        row = Cells(dict(zip(header.columns, cells, strict=False)), f"row {number}")
        files = {name: file for name in PATHS if (file := _file(row, name, path.parent.absolute()))}
        record = _record(row, files, header.columns)
        problems += row.problems
        missing += _missing(row, files)
        if record is not None:
            records[number] = record
    if not rows:
        problems.append(f"{here}: contains no subjects, expected one row per subject. Add them below the header.")
    problems += _check_across_rows(records)
    if problems:
        # Alone, a missing file is left to the check of the scans, so that the other subjects can be processed. If the
        # table has to be corrected anyway, it is named here, too.
        raise UserError([*problems, *missing])
    return Manifest(tuple(records.values()), (f"{here}: {header.note}",) if header.note else ())


def write_manifest(path: Path, manifest: Manifest) -> Path:
    """Write a manifest as CSV atomically, with paths relative to the CSV.

    Reading the file gives the same records.
    """
    # File names that are not UTF-8 are written with their original bytes.
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for record in manifest:
            files = {name: _relative(image, path.parent) for name, image in record.files.items()}
            values = [files.get(name, "") if name in PATHS else getattr(record, name) for name in COLUMNS]
            writer.writerow(["" if value is None else value for value in values])
    return path


# -- the table -------------------------------------------------------------------------------------------------------
def read_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header (lower case) and the non-empty rows with their row numbers as in a spreadsheet."""
    if not os.path.isfile(path):
        raise UserError(f"{private(path)}: is not a file, expected a table (CSV). Give the path of a CSV file.")
    text = _decoded(table_bytes(path), path)
    declared = _SEPARATOR_LINE.match(text)
    # Spreadsheets do not count this line as a row.
    text = text[declared.end() :] if declared else text
    first_line = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")
    separator = declared[1] if declared else max(",;\t", key=first_line.count)
    try:
        numbered = numbered_rows(text, separator, path)
    except csv.Error as error:
        raise UserError(
            f"{private(path.name, 'the manifest')}: cannot be parsed, expected a table (CSV). Save it again as CSV "
            "(UTF-8)."
        ) from error
    if not numbered:
        raise UserError(
            f"{private(path.name, 'the manifest')}: is empty, expected a table with the columns "
            f"{', '.join(REQUIRED)}. Fill it in."
        )
    header = [cell.strip().lower() for cell in numbered[0][1]]
    while header and not header[-1]:  # empty columns at the right end, as written by spreadsheets
        header.pop()
    rows = [
        (n, cells if any(map(str.strip, cells[len(header) :])) else cells[: len(header)]) for n, cells in numbered[1:]
    ]
    return header, rows


def _decoded(content: bytes, path: Path) -> str:
    encodings = ["utf-16"] if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise UserError(
        f"{private(path.name, 'the manifest')}: is not a text file, expected a manifest as CSV. Save the spreadsheet "
        "as CSV (UTF-8)."
    )


def _record(row: Cells, files: Mapping[str, Path], columns: Sequence[str]) -> SubjectRecord | None:
    """Return the row as a record, or None if it has problems or a required column is missing."""
    subject_id, session_id = row.label("subject_id", "sub-"), row.label("session_id", "ses-")
    group, split = row.word("group", GROUPS), row.word("split", SPLITS)
    age, sex = row.age(), row.sex()
    mask_of = row.word("mask_of", MODALITIES) or "t1w"
    if row.text(mask_of) is None and row.text("t1w"):
        row.problem(f"mask_of is {mask_of}, but column {mask_of} is empty. Fill it in.")
    for name in (name for name in REQUIRED if name in columns):
        row.require(name)
    if group == "patient" and split == "train":
        row.problem("a patient has split train, but only controls are used for training. Leave the cell empty.")
    if row.problems or subject_id is None or group is None or "t1w" not in files:
        return None
    return SubjectRecord(
        subject_id=subject_id,
        session_id=session_id,
        group=group,
        images={modality: files[modality] for modality in MODALITIES if modality in files},
        brain_mask=files.get("brain_mask"),
        lesion_mask=files.get("lesion_mask"),
        mask_of=mask_of,
        template_transform=files.get("template_transform"),
        site=row.text("site"),
        age=age,
        sex=sex,
        split=split,
    )


def _check_across_rows(records: Mapping[int, SubjectRecord]) -> list[str]:
    """Check consistency across rows: unique subjects, one group and split per participant, unique scans."""
    rows = list(records)
    problems = [
        f"row {rows[later]}: {name} and {other} in row {rows[first]} differ only in case, expected unique ids. Write "
        "the id of a participant in one way only."
        for later, name, first, other in differing_in_case(records.values())
    ]
    names: dict[str, int] = {}
    participants: dict[str, int] = {}
    scans: dict[Path, int] = {}
    for number, record in records.items():
        first = names.setdefault(record.key, number)
        if first != number:
            problems.append(
                f"row {number}: {record.key} is also in row {first}, expected unique ids. Number the sessions in "
                "column session_id."
            )
        earlier = records[participants.setdefault(record.subject_id, number)]
        if earlier.group != record.group:
            problems.append(
                f"row {number}: sub-{record.subject_id} is a {record.group} here and a {earlier.group} in row "
                f"{participants[record.subject_id]}, expected one group per participant. Correct one of them."
            )
        elif earlier.split and record.split and earlier.split != record.split:
            problems.append(
                f"row {number}: sub-{record.subject_id} is {record.split} here and {earlier.split} in row "
                f"{participants[record.subject_id]}, expected one split per participant. Correct one of them."
            )
        for modality, scan in record.images.items():
            first = scans.setdefault(scan, number)
            if first != number or list(record.images.values()).count(scan) > 1:
                where = f"row {first}" if first != number else "another column"
                problems.append(f"row {number}: {modality} is the same file as in {where}. List each scan once.")
    return problems


# -- paths -----------------------------------------------------------------------------------------------------------
def _file(row: Cells, name: str, folder: Path) -> Path | None:
    try:
        return file_in(folder, cell) if (cell := row.text(name)) else None
    except UserError as error:
        row.problem(f"{name} {error}")
        return None


def _missing(row: Cells, files: Mapping[str, Path]) -> list[str]:
    """Return a sentence for each file that does not exist."""
    found = []
    for name, path in files.items():
        try:
            reach(path, "an image")
        except UserError as error:
            found += [f"{row.where}: {name} {problem}" for problem in error.problems]
    return found


def _relative(file: Path, folder: Path) -> str:
    try:
        return str(file.relative_to(folder.absolute()))
    except ValueError:
        return os.path.relpath(file, os.path.realpath(folder))
