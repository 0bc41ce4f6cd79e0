"""Which controls train, and which are held out so that no detector has seen them."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass

from ..errors import UserError
from .subject import Manifest, SubjectRecord


@dataclass(frozen=True)
class Split:
    """Keys of the controls on either side, in the manifest's order."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def split_controls(manifest: Manifest, *, held_out_share: float, seed: int) -> Split:
    """Split the controls by person.

    Each person draws a fixed number in [0, 1) from the seed and the subject id, and is held out where it lies below
    the share. So nobody's side depends on who else is in the cohort; the share is met on average, not exactly. Where
    chance would leave a side of several people empty, the person with the most extreme number goes there.

    Parameters
    ----------
    manifest : Manifest
        Patients are passed over. A control whose record names a split keeps it, with all of the person's sessions.
    held_out_share : float, in [0, 1)
    seed : int

    Raises
    ------
    UserError
        No controls; a person whose sessions are marked for both sides; nobody left to train.
    """
    sessions: dict[str, list[SubjectRecord]] = defaultdict(list)
    for record in manifest.controls:
        sessions[record.subject_id].append(record)
    if not sessions:
        raise UserError("the manifest holds no controls, expected healthy subjects to learn from. Add some.")
    torn = [participant for participant, records in sessions.items() if len({r.split for r in records if r.split}) > 1]
    if torn:
        messages = "its sessions are marked both train and held_out, expected one side a person. Correct column split."
        raise UserError([f"sub-{participant}: {messages}" for participant in torn])
    marked = {
        participant: record.split for participant, records in sessions.items() for record in records if record.split
    }
    drawn = {participant: _number(seed, participant) for participant in sessions if participant not in marked}
    held_out = {participant for participant, number in drawn.items() if number < held_out_share}
    if held_out_share > 0 and len(drawn) > 1 and not held_out and "held_out" not in marked.values():
        held_out = {min(drawn, key=drawn.__getitem__)}
    if len(drawn) > 1 and held_out == set(drawn) and "train" not in marked.values():
        held_out.remove(max(drawn, key=drawn.__getitem__))
    held_out |= {participant for participant, side in marked.items() if side == "held_out"}
    train = tuple(r.key for r in manifest.controls if r.subject_id not in held_out)
    if not train:
        raise UserError(
            "all controls are held out, expected some to learn from. Mark some as train in column split, or lower "
            "data_manifests.held_out_share."
        )
    return Split(train, tuple(r.key for r in manifest.controls if r.subject_id in held_out))


def _number(seed: int, participant: str) -> float:
    """In [0, 1), the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{participant}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
