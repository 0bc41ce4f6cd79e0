"""The file of a packed model: a zip whose entries are known by name, size and SHA-256.

A packed model comes from elsewhere. Before anything is unpacked, its list of entries is compared with the names that a
model can have and with limits; then each entry is unpacked to the size in the index, no further, and compared with its
checksum.
"""

import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.errors import UserError, private
from ...data_manifests.open_file import file_hash, open_file
from ...data_manifests.typed_json import Content

SUFFIX = ".voxout"
CARD, SETTINGS, THRESHOLD, BRAIN_MASK = "README.md", "settings.json", "threshold.json", "brain_mask.safetensors"
UNITS = "units.safetensors"
"""In the folder of a scorer; not a file of the unpacked model."""
LONGEST_LICENCE, LONGEST_NOTE = 200, 500
_FORMAT, _VERSION = "voxout packed model", 1
_INDEX = "index.json"
_SCORER = "[a-z0-9_]{1,60}"
_NAMES = re.compile(
    "|".join(
        (
            *map(re.escape, (CARD, SETTINGS, THRESHOLD, BRAIN_MASK)),
            r"detectors/(channels|confounds|covariates)\.json",
            r"detectors/(ages|components|combined|surroundings|compared|scanner)\.safetensors",
            r"detectors/labels/(fusion|combined|surroundings|compared)\.safetensors",
            rf"detectors/{_SCORER}/(calibration|smoothed|components|confounds|whitening|networks|prototypes|units)\.safetensors",
            rf"detectors/{_SCORER}/field/detectors\.(json|safetensors)",
            r"encoder/(member-[0-9]{1,2}/)?(checkpoint\.json|step-[0-9]{1,9}\.safetensors)",
        )
    )
)
"""All names that an entry, or a file of the unpacked model, can have. None leads out of a folder."""
_MOST_ENTRIES = 1000
_LARGEST_INDEX = 2**20
_LARGEST_TEXT = 2**26
"""Of an entry that is not of tensors."""
_LARGEST_IN_ALL = 2**34
_LARGEST_RATIO = 50
"""Of the sizes of all entries to the size of the file."""
_AT_ONCE = 2**20
_ADVICE = "Ask for the file again, and compare its SHA-256 with that of the sender."


class _Entry(Content):
    size: Annotated[int, Field(ge=0, le=_LARGEST_IN_ALL)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Head(Content):
    model_config = ConfigDict(extra="ignore")

    format: Literal["voxout packed model"]
    version: int
    voxout: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{1,40}$")]


class About(Content):
    """What the index says of the model.

    Attributes
    ----------
    model_format : int
        Format of the files of the model.
    fitted : str
        Date, as 2026-01-31.
    controls : int
        Number of scans that it was fitted to.
    members : int
        Number of encoders.
    versions : dict of str to str
        Of the packages that it was fitted with.
    licence : str or None
        As the sender names it; None: not stated.
    note : str or None
        A sentence of the sender; None: none.
    """

    model_format: int
    fitted: Annotated[str, Field(pattern=r"^([0-9]{4}-[0-9]{2}-[0-9]{2})?$")]
    controls: Annotated[int, Field(ge=0)]
    members: Annotated[int, Field(ge=0, le=50)]
    versions: dict[str, str]
    licence: Annotated[str, Field(max_length=LONGEST_LICENCE)] | None = None
    note: Annotated[str, Field(max_length=LONGEST_NOTE)] | None = None


class _Index(_Head):
    model_config = ConfigDict(extra="forbid")

    about: About
    entries: dict[str, _Entry]
    copies: dict[str, str]


@dataclass(frozen=True)
class PackFile:
    """An open packed model whose list of entries was checked.

    Attributes
    ----------
    path : Path
    about : About
    names : tuple of str
        Files of the model, by their names.
    identity : str
        SHA-256 of the index, which holds the checksums of all entries.
    """

    path: Path
    about: About
    names: tuple[str, ...]
    identity: str
    _archive: zipfile.ZipFile
    _index: _Index

    @property
    def packed_by(self) -> str:
        """Version of voxout that packed it."""
        return self._index.voxout

    @property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of each file, as packed."""
        entries, copies = self._index.entries, self._index.copies
        return {name: entries[copies.get(name, name)].sha256 for name in self.names}

    def read(self, name: str) -> bytes:
        """Return the content of a file of text or JSON."""
        return b"".join(self._chunks(name))

    def extract(self, name: str, path: Path) -> Path:
        """Unpack a file to a path.

        Raises
        ------
        UserError
            The file is damaged.
        """
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            for chunk in self._chunks(name):
                file.write(chunk)
        return path

    def _chunks(self, name: str) -> Iterator[bytes]:
        name = self._index.copies.get(name, name)
        expected, found, size = self._index.entries[name], hashlib.sha256(), 0
        try:
            with self._archive.open(name) as entry:
                # An entry may unpack to more than it declares.
                while chunk := entry.read(min(_AT_ONCE, expected.size - size + 1)):
                    size += len(chunk)
                    if size > expected.size:
                        break
                    found.update(chunk)
                    yield chunk
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise _damaged(self.path, name) from error
        if size != expected.size or found.hexdigest() != expected.sha256:
            raise _damaged(self.path, name)


def is_pack(path: Path) -> bool:
    """Whether a path is to be read as a packed model, not as the folder of a model."""
    return path.is_file() or (path.suffix == SUFFIX and not path.is_dir())


@contextmanager
def opened_pack(path: Path) -> Iterator[PackFile]:
    """Open a packed model, and check its index and list of entries; nothing is unpacked yet.

    Raises
    ------
    UserError
        No packed model, one of a newer version, a damaged one, or one with other entries than those of a model.
    """
    with open_file(path, expected=f"a packed model ({SUFFIX})") as file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError) as error:
            raise UserError(
                f"{private(path)}: is not a packed model or is cut off, expected a file that `voxout model pack` "
                f"wrote. {_ADVICE}"
            ) from error
        with archive:
            text = _index_text(archive, path)
            index = _read_index(text, path)
            _require_entries(archive, index, path)
            files = (*index.entries, *index.copies)
            yield PackFile(path, index.about, files, hashlib.sha256(text).hexdigest(), archive, index)


def write_pack(path: Path, files: Mapping[str, Path], about: About) -> None:
    """Write a packed model atomically; files of the same content are stored once.

    Parameters
    ----------
    path : Path
    files : mapping from name to Path
    about : About
    """
    entries: dict[str, dict[str, Any]] = {}
    copies, first = {}, {}
    for name, file in files.items():
        found = file_hash(file)
        if found in first:
            copies[name] = first[found]
        else:
            first[found] = name
            entries[name] = {"size": file.stat().st_size, "sha256": found}
    head = {"format": _FORMAT, "version": _VERSION, "voxout": metadata.version("voxout")}
    index = _Index.model_validate(head | {"about": about, "entries": entries, "copies": copies})
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, _INDEX, index.model_dump_json(indent=1, exclude_none=True).encode())
        for name in entries:
            _add(archive, name, files[name].read_bytes())


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    # Neither the time nor the permissions of a file, so that the same model gives the same bytes.
    archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, 9)


def _index_text(archive: zipfile.ZipFile, path: Path) -> bytes:
    entry = next((info for info in archive.infolist() if info.filename == _INDEX), None)
    if entry is None or not 0 < entry.file_size <= _LARGEST_INDEX or not _is_plain(entry):
        raise UserError(
            f"{private(path)}: is a zip without the index of a packed model, expected a file that `voxout model pack` "
            "wrote. Check the path."
        )
    try:
        with archive.open(entry) as file:
            return file.read(_LARGEST_INDEX)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise _damaged(path, _INDEX) from error


def _read_index(text: bytes, path: Path) -> _Index:
    try:
        head = _Head.model_validate_json(text, strict=True)
        if head.version > _VERSION:
            raise UserError(
                f"{private(path)}: was packed by voxout {head.voxout} in format {head.version}, expected format "
                f"{_VERSION} at most. Update voxout, or ask for a model packed with this version "
                f"({metadata.version('voxout')})."
            )
        return _Index.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise _damaged(path, _INDEX) from error


def _require_entries(archive: zipfile.ZipFile, index: _Index, path: Path) -> None:
    """Require the entries that the index lists, of known names and kinds, within the limits."""
    found = archive.infolist()
    names = [info.filename for info in found]
    wrong = [name for name in (*index.entries, *index.copies, *names) if not _NAMES.fullmatch(name) and name != _INDEX]
    if wrong or _INDEX in index.entries or len(found) > _MOST_ENTRIES:
        what = f"an entry {private(wrong[0][:80])}" if wrong else f"{len(found)} entries"
        raise UserError(
            f"{private(path)}: holds {what}, which no packed model has, expected a file that `voxout model pack` "
            "wrote. Do not use it."
        )
    if sorted(names) != sorted([_INDEX, *index.entries]) or not {*index.copies.values()} <= {*index.entries}:
        raise UserError(
            f"{private(path)}: its entries are not those that its index lists, expected the same. {_ADVICE}"
        )
    if overlap := index.copies.keys() & index.entries.keys():
        raise _damaged(path, min(overlap))
    sizes = {info.filename: info.file_size for info in found}
    total, size = sum(sizes.values()), max(path.stat().st_size, 1)
    texts = (sizes[name] for name in sizes if not name.endswith(".safetensors"))
    if total > min(_LARGEST_IN_ALL, _LARGEST_RATIO * size) or max(texts) > _LARGEST_TEXT:
        raise UserError(
            f"{private(path)}: would unpack from {size:,} to {total:,} bytes, expected at most {_LARGEST_RATIO} times "
            f"its size and {_LARGEST_IN_ALL:,}. Do not use it."
        )
    for info in found:
        declared = index.entries[info.filename].size if info.filename != _INDEX else info.file_size
        if not _is_plain(info) or info.file_size != declared:
            raise _damaged(path, info.filename)


def _is_plain(info: zipfile.ZipInfo) -> bool:
    """Whether an entry is stored or deflated and not encrypted."""
    return info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not info.flag_bits & 0x1


def _damaged(path: Path, name: str) -> UserError:
    return UserError(f"{private(path)}: {name} is damaged, expected what was packed. {_ADVICE}")
