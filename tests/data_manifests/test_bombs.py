"""Small files that decompress to gigabytes or declare such a size are rejected quickly and with little memory."""

import gzip
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOM_BYTES, SLOWEST_S = 600 * 2**20, 30
_READ = Path(__file__).with_name("read_with_little_memory.py")


@pytest.fixture(scope="module")
def messages_for() -> Iterator[Callable[..., list[str]]]:
    """Return the message of each reader for a file, in a process with limited memory."""
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # each further thread takes address space
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, str(_READ)], **pipes, text=True, env=one_thread) as process:
        assert process.stdin is not None and process.stdout is not None

        def ask(path: Path, *readers: str) -> list[str]:
            print(json.dumps([str(path), ROOM_BYTES, *readers]), file=process.stdin, flush=True)
            lines = []
            while not (line := process.stdout.readline()).startswith("exit "):
                assert line, "the script has ended"
                lines.append(line.rstrip("\n").partition(" "))
            assert line == "exit 0\n" and len(lines) == len(readers)
            assert all(float(seconds) < SLOWEST_S for seconds, _, _ in lines)
            return [message for _, _, message in lines]

        yield ask
        process.stdin.close()


def _header(shape: tuple[int, ...], dtype: str = "i2") -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_sform(np.diag([1, 1, 1, 1]), code=1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return header.binaryblock + bytes(4)


def _write_zipped(path: Path, start: bytes, zeros: float) -> None:
    """Write a gzip file of some bytes and many zeros, whose compressed block is repeated."""
    pack, block = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS), bytes(2**24)
    number = int(zeros) // len(block) + 1
    packed_start = pack.compress(start) + pack.flush(zlib.Z_FULL_FLUSH)
    packed_block = pack.compress(block) + pack.flush(zlib.Z_FULL_FLUSH)
    checksum = zlib.crc32(start)
    for _ in range(number):
        checksum = zlib.crc32(block, checksum)
    end = struct.pack("<II", checksum, (len(start) + number * len(block)) % 2**32)
    path.write_bytes(gzip.compress(b"")[:10] + packed_start + packed_block * number + pack.flush() + end)


def _huge_header(path: Path) -> None:
    path.write_bytes(_header((30_000, 30_000, 30_000)) + bytes(1000))


def _huge_zipped_header(path: Path) -> None:
    path.write_bytes(gzip.compress(_header((30_000, 30_000, 30_000)) + bytes(1000)))


def _endless_after_the_voxels(path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 99, 8000).astype("i2").tobytes()
    _write_zipped(path, _header((20, 20, 20)) + voxels, 1e9)


def _as_large_as_declared(path: Path) -> None:
    _write_zipped(path, _header((900, 900, 600)), 900 * 900 * 600 * 2)


def _flat_mask(path: Path) -> None:
    _write_zipped(path, _header((20_000, 20_000, 2), "u1"), 8e8)


def _far_voxels(path: Path) -> None:
    header = bytearray(_header((20, 20, 20)))
    header[108:112] = np.float32(6e7).tobytes()
    _write_zipped(path, bytes(header), 1e9)


def _huge_extension(path: Path) -> None:
    header = bytearray(_header((20, 20, 20)))
    header[108:112] = np.float32(5e7).tobytes()
    path.write_bytes(bytes(header[:348]) + b"\1\0\0\0" + np.array([2**31 - 16, 6], "<i4").tobytes() + bytes(9000))


def _mgz(path: Path) -> None:
    _write_zipped(path, np.array([1, 30_000, 30_000, 30_000, 1, 4, 0], ">i4").tobytes(), 1e9)


def _one_frame_mgz(path: Path) -> None:
    path.write_bytes(gzip.compress(np.array([1, 256, 256, 256, 2**30, 4, 0], ">i4").tobytes() + bytes(2000)))


def _tiff(path: Path) -> None:
    path.write_bytes(b"II*\0" + bytes(4) + b"\xff" * 600)


_SCANS = {
    "a.nii": (_huge_header, "expected at most 500,000,000 voxels"),
    "b.nii.gz": (_huge_zipped_header, "expected at most 500,000,000 voxels"),
    "c.nii.gz": (_endless_after_the_voxels, "after its last voxel"),
    "d.nii.gz": (_as_large_as_declared, "is truncated or damaged"),
    "e.nii.gz": (_flat_mask, "expected"),
    "f.nii.gz": (_far_voxels, "expected"),
    "g.nii": (_huge_extension, "expected"),
    "h.mgz": (_mgz, "expected at most 500,000,000 voxels"),
    "i.mgz": (_one_frame_mgz, "expected"),
    "j.nii.gz": (_tiff, "is not in a supported image format"),
}


@pytest.mark.parametrize("name", _SCANS)
def test_oversized_scans(tmp_path, messages_for, name):
    write, words = _SCANS[name]
    write(tmp_path / name)
    assert (tmp_path / name).stat().st_size < 20 * 2**20
    assert all(words in message for message in messages_for(tmp_path / name, "read_volume", "read_mask"))


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**36)


def _written(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


_DEEP = b"[" * 5_000_000
_TABLES = {
    "sparse": (_sparse, "read_manifest", "expected a participant table of at most 16 MB"),
    "rows": (_written(b"subject_id,group,t1w\n" + b"1,control,a\n" * 1_300_000), "read_manifest", "too many rows"),
    "empty lines": (_written(b"\n" * 2**24), "read_manifest", "is empty"),
    "columns": (_written(b"subject_id,group,t1w" + b",a" * 5_000_000), "read_manifest", "too many columns"),
    "a cell": (
        _written(b"subject_id,group,t1w\n" + b"1" * 2**23),
        "read_manifest",
        "cannot be parsed, expected a table",
    ),
    "a quote": (
        _written(b'subject_id,group,t1w\n"' + b"\n" * 2**23),
        "read_manifest",
        "cannot be parsed, expected a table",
    ),
    "participants": (_sparse, "read_participant_table", "expected a participant table of at most 16 MB"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "empty lines")) for name in _TABLES]
)
def test_oversized_tables(tmp_path, messages_for, name):
    write, reader, words = _TABLES[name]
    write(tmp_path / "x.csv")
    assert words in messages_for(tmp_path / "x.csv", reader)[0]


def test_oversized_participants_tsv(tmp_path, messages_for):
    (tmp_path / "sub-01" / "anat").mkdir(parents=True)
    (tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz").touch()
    (tmp_path / "participants.tsv").write_bytes(b"participant_id\tgroup\n" + b"sub-1\tcontrol\n" * 1_100_000)
    assert "too many rows" in messages_for(tmp_path, "read_manifest")[0]
    _sparse(tmp_path / "participants.tsv")
    assert "expected a participant table of at most 16 MB" in messages_for(tmp_path, "read_manifest")[0]
    (tmp_path / "participants.tsv").unlink()
    os.mkfifo(tmp_path / "participants.tsv")
    assert "not a regular file" in messages_for(tmp_path, "read_manifest")[0]


@pytest.mark.parametrize("name", ["log.jsonl", "records/a.json"])
def test_oversized_json_of_other_programs(tmp_path, messages_for, name):
    """The search for voxout runs in a dataset also reads files of other programs."""
    (tmp_path / "sub-01" / "anat").mkdir(parents=True)
    (tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz").touch()
    other = tmp_path / "derivatives" / "other"
    (other / "records").mkdir(parents=True)
    (other / "config.yaml").touch()
    (other / name).write_bytes(_DEEP)
    assert messages_for(tmp_path, "read_manifest") == ["accepted: Manifest"]
    _sparse(other / name)
    assert messages_for(tmp_path, "read_manifest") == ["accepted: Manifest"]


@pytest.mark.parametrize(
    ("content", "reader", "words"),
    [
        (_DEEP, "load_json", "nested too deeply"),
        (b'{"a":' * 300_000, "load_json", "nested too deeply"),
        (_DEEP, "StageRecord.read", ""),
        (b"a: " + _DEEP[:50_000], "load_config", "nested too deeply"),
        (b"? " * 50_000, "load_config", "expected"),
        ((2**62).to_bytes(8, "little") + b"{}", "read_tensors", "its header claims"),
        ((90_000_000).to_bytes(8, "little") + b"{}", "read_tensors", "its header claims"),
        ((5_000_000).to_bytes(8, "little") + _DEEP, "read_tensors", "not JSON"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_oversized_json_yaml_and_safetensors(tmp_path, messages_for, content, reader, words):
    (tmp_path / "x").write_bytes(content)
    (message,) = messages_for(tmp_path / "x", reader)
    assert words in message and not message.startswith("accepted")


def test_large_header_of_safetensors(tmp_path, messages_for):
    entry = b'"%07d":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = b"{" + b",".join(entry % n for n in range(1_200_000)) + b"}"
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "its header claims" in messages_for(tmp_path / "x", "read_tensors")[0]
