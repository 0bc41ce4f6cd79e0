"""Selection of participants, sessions and scans of a BIDS dataset."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import counted, private, some_of
from ..terms import BIDS_SUFFIX, Group, Modality
from .bids_filter import ScanFilter, choosing
from .bids_names import BidsName, SessionId, key_of, likely_matches
from .bids_scans import FoundScans, ScansOf


@dataclass(frozen=True)
class BidsSelection:
    """What is read of a BIDS dataset; by default everything.

    Attributes
    ----------
    participants, sessions : tuple of str
        Labels without ``sub-`` and ``ses-``; empty: all.
    filters : mapping from modality to ScanFilter
    one_scan_of : tuple of Modality
        Modalities of which a session must have at most one scan, apart from scans with contrast agent. Of the others,
        the first by `BidsName.rank` is used.
    unknown_group : {"control", "patient"} or None
        Group of participants without one; None: derived from the dataset.
    derivatives : tuple of Path
        Derivative datasets outside the dataset, in which masks are searched, too.
    """

    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    filters: Mapping[Modality, ScanFilter] = field(default_factory=dict)
    one_scan_of: tuple[Modality, ...] = ()
    unknown_group: Group | None = None
    derivatives: tuple[Path, ...] = ()

    def sessions_of(self, found: FoundScans) -> dict[SessionId, ScansOf]:
        """Return the selected sessions with their selected scans."""
        return {
            session: scans if session in found.unreached else self._filtered(scans)
            for session, scans in found.sessions.items()
            if (not self.participants or session[0] in self.participants)
            and (not self.sessions or session[1] in self.sessions)
        }

    def _filtered(self, scans: ScansOf) -> dict[Modality, list[BidsName]]:
        everything = ScanFilter({})
        kept = {m: [n for n in names if self.filters.get(m, everything).accepts(n)] for m, names in scans.items()}
        return {modality: kept[modality] for modality in scans if kept[modality]}

    def problems(self, found: FoundScans) -> list[str]:
        """Return labels that the dataset lacks, selected participants without a T1w, and ambiguous scans."""
        selected = self.sessions_of(found)
        return [*self._unknown_labels(found), *self._without_t1w(found, selected), *self._ambiguous(selected)]

    def _unknown_labels(self, found: FoundScans) -> list[str]:
        there = list(dict.fromkeys(subject for subject, _ in found.sessions))
        problems = [
            f"--participant-label: {private(label)} is not in the dataset, expected one of its "
            f"{counted(len(there), 'participant')}, such as {some_of(likely_matches(label, there) or there)}. "
            "Check the label."
            for label in self.participants
            if label not in there
        ]
        known = sorted({session for _, session in found.sessions if session is not None})
        expected = f"one of {some_of(known)}" if known else "none, since it has no folders ses-*"
        problems += [
            f"--session-label: {private(label)} is not in the dataset, expected {expected}. Check the label."
            for label in self.sessions
            if label not in known
        ]
        return problems

    def _without_t1w(self, found: FoundScans, selected: Mapping[SessionId, ScansOf]) -> list[str]:
        """Of participants named one by one, each must have a scan."""
        if not set(self.sessions) <= {session for _, session in found.sessions}:
            return []
        there = {subject for subject, _ in found.sessions}
        with_t1w = {subject for (subject, _), scans in selected.items() if "t1w" in scans}
        sessions = f" in session {', '.join(self.sessions)}" if self.sessions else ""
        passing = " that the filter file accepts" if "t1w" in self.filters else ""
        return [
            f"sub-{label}: found no T1w{passing}{sessions}, expected sub-{label}/[ses-*/]anat/*_T1w.nii.gz. Check the "
            "dataset, or leave this participant out."
            for label in self.participants
            if label in there and label not in with_t1w
        ]

    def _ambiguous(self, selected: Mapping[SessionId, ScansOf]) -> list[str]:
        problems = []
        for modality in self.one_scan_of:
            several = {s: names for s, scans in selected.items() if len(names := _plain(scans.get(modality, []))) > 1}
            if not several:
                continue
            (session, names), suffix = next(iter(several.items())), BIDS_SUFFIX[modality]
            first = min(names, key=lambda n: n.rank)
            choice = choosing(first, names)
            how = (
                f"Choose with --bids-filter-file, for instance {json.dumps({modality: choice})} for "
                f"{private(first.path.name)}."
                if choice
                else "Take the others out of the folder."
            )
            more = f" (and so for {counted(len(several) - 1, 'other session')})" if len(several) > 1 else ""
            problems.append(
                f"{key_of(session)}: found {len(names)} {suffix} ({some_of(private(n.path.name) for n in names)})"
                f"{more}, expected one. {how}"
            )
        return problems


def _plain(names: Iterable[BidsName]) -> list[BidsName]:
    """Return the scans without contrast agent; all, if there is none without."""
    names = list(names)
    return [name for name in names if "ce" not in name.entities] or names
