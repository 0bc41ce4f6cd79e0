"""Sending of DICOM files to an archive (C-STORE)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE

from ...data_manifests.errors import UserError, counted, some_of
from .reading import silent

_TITLE = "VOXOUT"
_LIMIT_S = 30
_STORED = {0x0000, 0xB000, 0xB006, 0xB007}
"""Success, and success with a warning."""


@dataclass(frozen=True)
class Archive:
    """A DICOM node.

    Attributes
    ----------
    title : str
        Its AE title.
    host : str
    port : int
    """

    title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Archive":
        """Return the node of a text such as ``PACS@10.0.0.5:104``.

        Raises
        ------
        UserError
        """
        match = re.fullmatch(r"([^@\\\s]{1,16})@([^@:\s]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})", text)
        if match is None or not 0 < int(match[3]) < 2**16:
            raise UserError(f"--send {text[:60]}: expected AET@HOST:PORT, as in PACS@10.0.0.5:104.")
        return cls(match[1], match[2].strip("[]"), int(match[3]))

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"


@silent()
def send(paths: Sequence[Path], archive: Archive, title: str = _TITLE) -> None:
    """Send files to an archive.

    Parameters
    ----------
    paths : sequence of Path
    archive : Archive
    title : str
        Own AE title, by which the archive knows the sender.

    Raises
    ------
    UserError
        The archive cannot be reached, or does not store all of them.
    """
    entity = AE(ae_title=title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = _LIMIT_S
    kinds = {dcmread(path, specific_tags=["SOPClassUID"], stop_before_pixels=True).SOPClassUID for path in paths}
    for kind in sorted(kinds):
        entity.add_requested_context(kind, ExplicitVRLittleEndian)
    association = entity.associate(archive.host, archive.port, ae_title=archive.title)
    if not association.is_established:
        why = "refuses the association" if association.is_rejected else "cannot be reached"
        raise UserError(
            f"--send {archive}: {why}, expected an archive that stores. The files are written; check title, host and "
            f"port, and whether the archive knows {title}."
        )
    refused = []
    try:
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        for path in paths:
            dataset = dcmread(path)
            sent = dataset.SOPClassUID in accepted and association.is_established
            if not sent or association.send_c_store(dataset).get("Status") not in _STORED:
                refused.append(path.name)
    finally:
        association.release()
    if refused:
        raise UserError(
            f"--send {archive}: stored {len(paths) - len(refused)} of {counted(len(paths), 'file')} and refused "
            f"{some_of(refused)}, expected all to be stored. The files are written; ask for their kinds to be "
            "accepted, or send the others alone."
        )
