"""Fuzzing of scans and tables: each file is read correctly or rejected with a message.

There must be no traceback, hang, silent zero or memory allocation according to a wrong header.
"""

import gzip
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.nifti1 import Nifti1Extension
from numpy.random import Generator
from voxout.data_manifests.cohort.check import check_manifest
from voxout.data_manifests.cohort.manifest import COLUMNS, read_manifest
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.errors import UserError, for_terminal
from voxout.data_manifests.images.volume import Volume, read_grid, read_labels, read_map, read_mask, read_volume

SEED = 20_260
FEW, MANY = 100, 1000
SLOWEST_S, MOST_BYTES = 10, 200 * 2**20
SHAPE = (9, 11, 8)


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """Check that time and memory stay below the limits; `what` is the message if not."""
    tracemalloc.start()
    began = time.monotonic()
    try:
        yield
    finally:
        duration, (_, peak) = time.monotonic() - began, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert duration < SLOWEST_S and peak < MOST_BYTES, (what, duration, peak)


def check_messages(error: UserError, what: str) -> None:
    for problem in error.problems:
        message = for_terminal(problem)
        assert message.isprintable() and 20 < len(message) < 1500 and message.endswith((".", "?", ")")), (what, message)


# -- scans -------------------------------------------------------------------------------------------------------------
def _scan(random: Generator) -> bytes:
    """Return a valid file: NIfTI-1 or 2, several data types, with and without scaling and extensions."""
    kind = random.choice(["i2", "u1", "f4", "f8", "u2", "i4"])
    voxels = random.integers(0, 2 if random.random() < 0.3 else 200, SHAPE).astype(kind)
    affine = np.diag([*random.uniform(0.8, 4, 3), 1.0])
    affine[:3, 3] = random.uniform(-90, 90, 3)
    image = (nib.Nifti1Image if random.random() < 0.8 else nib.Nifti2Image)(voxels, affine)
    image.set_qform(affine, code=int(random.integers(0, 3)))
    image.set_sform(affine, code=int(random.integers(0, 3)))
    if random.random() < 0.3:
        image.header.set_slope_inter(float(random.uniform(0.1, 3)), float(random.uniform(-5, 5)))
    if random.random() < 0.3:
        image.header.extensions.append(Nifti1Extension("comment", b"x" * int(random.integers(1, 90))))
    return image.to_bytes()


def _flip_bytes(content: bytearray, random: Generator) -> bytearray:
    for _ in range(int(random.integers(1, 7))):
        content[int(random.integers(0, 352))] = int(random.integers(0, 256))
    return content


def _flip_a_bit(content: bytearray, random: Generator) -> bytearray:
    content[int(random.integers(0, 352))] ^= 1 << int(random.integers(0, 8))
    return content


def _set_a_field(content: bytearray, random: Generator) -> bytearray:
    """Set a header field to an invalid value: 0, too large or not finite."""
    first = 348 if content[344:347] == b"n+1" else 540
    header = (nib.Nifti1Header if first == 348 else nib.Nifti2Header)(bytes(content[:first]), check=False)
    fields = ("dim", "pixdim", "vox_offset", "scl_slope", "scl_inter", "qform_code", "sform_code", "datatype", "bitpix")
    field = str(random.choice([*fields, "srow_x", "srow_y", "quatern_b", "qoffset_x", "xyzt_units", "magic"]))
    value = random.choice([0, 1, -1, 2, 7, 255, 1e30, 1e-30, np.nan, np.inf, -np.inf, 32767, 2**31, 0.001])
    if field == "magic":
        header[field] = random.choice([b"n+1", b"ni1", b"n+2", b""])
        return bytearray(header.binaryblock) + content[first:]
    array = np.atleast_1d(np.array(header[field]))
    with np.errstate(all="ignore"):
        array[int(random.integers(0, array.size))] = np.array(value).astype(array.dtype)
    header[field] = array if array.size > 1 else array[0]
    return bytearray(header.binaryblock) + content[first:]


def _truncate(content: bytearray, random: Generator) -> bytearray:
    return content[: int(random.integers(0, len(content)))]


def _cut_out(content: bytearray, random: Generator) -> bytearray:
    """Remove some bytes near the end of the header, where its extensions are."""
    first = int(random.integers(300, 600))
    return content[:first] + content[first + int(random.integers(1, 60)) :]


def _append_bytes(content: bytearray, random: Generator) -> bytearray:
    return content + random.bytes(int(random.integers(1, 3000)))


_FAULTS: list[Callable[[bytearray, Generator], bytearray]] = [
    _flip_bytes,
    _flip_a_bit,
    _set_a_field,
    _set_a_field,
    _truncate,
    _cut_out,
    _append_bytes,
]


def _mutated_scan(folder: Path, number: int) -> tuple[Path, str]:
    random = np.random.default_rng([SEED, number])
    content = bytearray(_scan(random))
    fault = _FAULTS[int(random.integers(len(_FAULTS)))]
    inside = random.random() < 0.7
    zipped = random.random() < 0.5
    if inside or not zipped:
        content = fault(content, random)
    packed = bytearray(gzip.compress(bytes(content), 1)) if zipped else content
    if zipped and not inside:
        packed = fault(packed, random) if len(packed) > 600 else _truncate(packed, random)
    path = folder / f"{number}.nii{'.gz' if zipped else ''}"
    path.write_bytes(packed)
    return path, f"seed {SEED}, number {number}, {fault.__name__.strip('_')}"


def _read_with_nibabel(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with LoggingOutputSuppressor():
        image = nib.load(path)
    return np.asanyarray(image.dataobj).reshape(image.shape[:3]), image.affine


_READERS: list[Callable[[Path], Volume]] = [read_volume, read_map, read_labels, read_mask]


def _try_scan(path: Path, what: str) -> bool:
    """Return whether a reader accepted the file; check that the result equals that of nibabel."""
    accepted = False
    with bounded(what):
        try:
            grid = read_grid(path)
        except UserError as error:
            check_messages(error, what)
            grid = None
        read: dict[str, Volume] = {}
        for reader in _READERS:
            try:
                read[reader.__name__] = reader(path)
            except UserError as error:
                check_messages(error, what)
    for name, volume in read.items():
        accepted = True
        values, affine = _read_with_nibabel(path)
        assert grid is not None and np.array_equal(grid.affine, volume.affine), what
        assert volume.voxels.shape == values.shape and np.allclose(volume.affine, affine, atol=1e-5), what
        with np.errstate(over="ignore"):
            expected = {"read_labels": values, "read_mask": values != 0}.get(name, values.astype(np.float32))
        assert np.array_equal(volume.voxels, expected, equal_nan=name == "read_map"), (what, name)
    with bounded(what):
        record = SubjectRecord("01", "patient", {"t1w": path}, brain_mask=path, lesion_mask=path)
        result = check_manifest(Manifest((record,)), modalities=("t1w",), fewest_controls=0)
    assert result.problems or read.keys() >= {"read_volume", "read_mask"}, what
    return accepted


def test_mutated_headers(tmp_path):
    accepted = sum(_try_scan(*_mutated_scan(tmp_path, number)) for number in range(FEW))
    assert 0.1 * FEW < accepted < 0.9 * FEW, "some faults are harmless, some are not"


@pytest.mark.slow
def test_many_mutated_headers(tmp_path):
    accepted = sum(_try_scan(*_mutated_scan(tmp_path, number)) for number in range(FEW, MANY + FEW))
    assert 0.1 * MANY < accepted < 0.9 * MANY


# -- tables ------------------------------------------------------------------------------------------------------------
_ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "cp037", "mac-roman")
_PIECES = (
    *(
        b"\0",
        b'"',
        b"'",
        b"\r",
        b"\n",
        b"\r\n",
        b",",
        b";",
        b"\t",
        b"|",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"sep=;",
    ),
    *(b"\x1a", b"\x1b[2J", b"\xe2\x80\xa8", b"\xc2\x85", b"\x80", b"~/", b"/", b"..", b"sub-", b"n/a", b"=1+1", b"\\"),
    *(b"\xe2\x81\xa8", b"\xe2\x81\xa9", b"\xed\xb3\xbf", b" " * 5000, b"x" * 200_000, b"," * 3000, b"\n" * 3000, b'""'),
    *(b"1e999", b"9" * 5000, "ä".encode(), b"a\xcc\x88"),
)


def _table(random: Generator, separator: str) -> str:
    header = list(COLUMNS) if separator != "\t" else ["participant_id", "group", "age", "sex", "site", "name"]
    rows = [header]
    for number in range(4):
        cells = dict.fromkeys(header, "")
        cells |= {"subject_id": f"{number}", "participant_id": f"sub-{number}", "group": "control", "age": "38,5"}
        cells |= {"t1w": f"{number}/t1 {number}.nii.gz", "site": "Zürich", "name": "a free text"}
        rows.append(
            [f'"{cells[name]}"' if random.random() < 0.2 or "," in cells[name] else cells[name] for name in header]
        )
    return "\r\n".join(separator.join(row) for row in rows)


def _mutated_table(random: Generator, text: str) -> bytes:
    content = bytearray(
        text.encode(_ENCODINGS[int(random.integers(len(_ENCODINGS)))] if random.random() < 0.4 else "utf-8")
    )
    for _ in range(int(random.integers(0, 5))):
        at = int(random.integers(0, len(content) + 1))
        match int(random.integers(5)):
            case 0:
                content[at:at] = _PIECES[int(random.integers(len(_PIECES)))]
            case 1:
                content[at : at + 1] = random.bytes(1)
            case 2:
                del content[at : at + int(random.integers(1, 30))]
            case 3:
                content[at:at] = content[int(random.integers(0, len(content) + 1)) :]
            case _ if random.random() < 0.1:
                del content[at:]
    return bytes(content)


def _try_table(folder: Path, number: int) -> bool:
    random = np.random.default_rng([SEED, 1, number])
    separator = str(random.choice([",", ";", "\t"]))
    content = _mutated_table(random, _table(random, separator))
    what = f"seed {SEED}, table {number}"
    if separator == "\t":
        path = folder
        (folder / "participants.tsv").write_bytes(content)
    else:
        path = folder / "cohort.csv"
        path.write_bytes(content)
    with bounded(what):
        try:
            manifest = read_manifest(path)
        except UserError as error:
            check_messages(error, what)
            return False
    for record in manifest:
        assert record.subject_id.isalnum() and record.group in ("control", "patient"), what
    for note in manifest.notes:
        assert for_terminal(note).isprintable() and len(note) < 1500, what
    return True


def _dataset(folder: Path) -> Path:
    for number in range(4):
        scan = folder / f"sub-{number}" / "anat" / f"sub-{number}_T1w.nii.gz"
        scan.parent.mkdir(parents=True)
        scan.touch()
    return folder


def test_mutated_tables(tmp_path):
    folder = _dataset(tmp_path)
    accepted = sum(_try_table(folder, number) for number in range(FEW))
    assert 0.05 * FEW < accepted < 0.9 * FEW


@pytest.mark.slow
def test_many_mutated_tables(tmp_path):
    folder = _dataset(tmp_path)
    accepted = sum(_try_table(folder, number) for number in range(FEW, MANY + FEW))
    assert 0.05 * MANY < accepted < 0.9 * MANY
