"""A made-up name to plant where a lab's files may contain a patient's name, and a search for it in outputs."""

import base64
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
from nibabel.nifti1 import Nifti1Extension
from PIL import Image

NAME = "Wexquibl"
"""Letters in no alphabetical order, since files may contain consecutive byte values."""
_SPELLINGS = [NAME.lower().encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")]
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{64,}={0,2}")


def plant_in_header(path: Path) -> None:
    """Put the name into every free-text field of a NIfTI file."""
    image = nib.load(path)
    image = nib.Nifti1Image(image.dataobj.get_unscaled(), image.affine, image.header)
    for field, text in {
        "descrip": f"T1 of {NAME}",
        "aux_file": f"{NAME}.aux",
        "db_name": f"{NAME}_db",
        "intent_name": f"for {NAME}",
    }.items():
        image.header[field] = text.encode()
    image.header.extensions.append(Nifti1Extension("comment", f"PatientName: {NAME}".encode()))
    nib.save(image, path)


def places_of_name(folder: Path) -> list[str]:
    """Return the files below a folder that contain the name, in their own name or in their unpacked content."""
    found = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if NAME.lower() in str(inside).lower():
            found.append(f"the name of {inside}")
        if path.is_symlink():
            found += [f"the link {inside}"] if NAME.lower() in str(path.readlink()).lower() else []
        elif path.is_file() and any(_has_name(content) for content in unpacked(path.read_bytes())):
            found.append(f"{inside}")
    return found


def _has_name(content: bytes) -> bool:
    content = content.lower()
    return any(spelling in content for spelling in _SPELLINGS)


def unpacked(content: bytes) -> Iterator[bytes]:
    """Yield a file's bytes and the data packed in it: gzip, zip (npz), the text of a PNG, base64 in a page."""
    yield content
    if content[:2] == b"\x1f\x8b":
        # The gzip header may contain the name of the packed file.
        yield from unpacked(gzip.decompress(content))
    elif content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield from unpacked(archive.read(name))
    elif content[:8] == b"\x89PNG\r\n\x1a\n":
        yield repr(Image.open(io.BytesIO(content)).info).encode()
    else:
        for match in _BASE64.finditer(content):
            packed = match[0][: len(match[0]) // 4 * 4]
            try:
                yield from unpacked(base64.b64decode(packed))
            except (ValueError, OSError, EOFError, zlib.error):
                continue
