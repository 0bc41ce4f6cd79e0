"""Split of the controls into training and held-out controls."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass

from ..errors import UserError
from .subject import Manifest, SubjectRecord


@dataclass(frozen=True)
class Split:
    """Keys of the training and held-out controls, in the order of the manifest."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def split_controls(manifest: Manifest, *, held_out_share: float, seed: int) -> Split:
    """Split the controls by participant.

    Each participant has a fixed pseudo-random number in [0, 1) that depends on the seed and the subject id, and is
    held out if it is below the share. The split of a participant is therefore independent of the rest of the cohort,
    and the share is met on average and not exactly. If one side would be empty although there are several
    participants, the participant with the most extreme number is assigned to it. Where the manifest marks held-out
    controls, none is drawn: all others are for training.

    Parameters
    ----------
    manifest : Manifest
        Patients are ignored. A `split` in the record of a control applies to all sessions of the participant.
    held_out_share : float, in [0, 1)
    seed : int

    Raises
    ------
    UserError
        No controls; a participant whose sessions have different splits; no training controls.
    """
    sessions: dict[str, list[SubjectRecord]] = defaultdict(list)
    for record in manifest.controls:
        sessions[record.subject_id].append(record)
    if not sessions:
        raise UserError("the manifest contains no controls, expected healthy subjects for training. Add some.")
    conflicting = [
        participant for participant, records in sessions.items() if len({r.split for r in records if r.split}) > 1
    ]
    if conflicting:
        message = (
            "its sessions have split train and held_out, expected one split per participant. Correct column split."
        )
        raise UserError([f"sub-{participant}: {message}" for participant in conflicting])
    marked = {
        participant: record.split for participant, records in sessions.items() for record in records if record.split
    }
    chosen = "held_out" in marked.values()
    drawn = {p: _number(seed, p) for p in sessions if p not in marked and not chosen}
    held_out = {participant for participant, number in drawn.items() if number < held_out_share}
    if held_out_share > 0 and len(drawn) > 1 and not held_out:
        held_out = {min(drawn, key=drawn.__getitem__)}
    if len(drawn) > 1 and held_out == set(drawn) and "train" not in marked.values():
        held_out.remove(max(drawn, key=drawn.__getitem__))
    held_out |= {participant for participant, side in marked.items() if side == "held_out"}
    train = tuple(r.key for r in manifest.controls if r.subject_id not in held_out)
    if not train:
        raise UserError(
            "all controls are held out, expected some for training. Mark some as train in column split, or lower "
            "data_manifests.held_out_share."
        )
    return Split(train, tuple(r.key for r in manifest.controls if r.subject_id in held_out))


def _number(seed: int, participant: str) -> float:
    """Return a pseudo-random number in [0, 1) that is the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{participant}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
