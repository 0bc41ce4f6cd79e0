"""Description of an output: what made it, when, from what, with which settings; as text and as JSON."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from textwrap import wrap
from typing import Any

from ...data_manifests.errors import UserError, counted, private, some_of

EXPECTED = "a file or folder that voxout wrote"
_NOT_RECORDED = "not recorded"
_LABEL, _WIDTH = 10, 110
_MOST_LISTED = 3
"""Inputs of one kind that the text lists; the JSON lists all."""


@dataclass(frozen=True)
class Input:
    """Something that a result was computed from.

    Attributes
    ----------
    name : str
    value : JSON value
        A hash, or the value itself.
    record : str
        Record in the same output folder that has this hash, such as ``records/fit.json``; empty: none.
    """

    name: str
    value: Any
    record: str = ""


@dataclass(frozen=True)
class Description:
    """Where a file or folder comes from; what is not known is None or empty.

    Attributes
    ----------
    name : str
        Of the file or folder: in an output folder, relative to it.
    holds : str
        What it is.
    command : str
        As ``"voxout run"``.
    stage : str
        With its title, as ``"map: write anomaly maps of patients and held-out controls"``.
    subject : str
        Key of the subject that it belongs to.
    began : str
        Time at which the work on it began, in UTC.
    seconds, memory_mb : float or None
    machine, device : str
    seed : int or None
    settings : mapping from name to value, or None
        Settings of the command that differ from the defaults of its version.
    inputs : sequence of Input
    versions : mapping from package to version
    commit : str
        Of the clone that voxout ran from.
    size : int or None
    sha256 : str
    state : str
        Whether the file or folder is still as voxout wrote it.
    done, failed : int
        Subjects, of a stage.
    notes : sequence of str
    parts : sequence of Description
        Of a folder with results of several stages.
    model : mapping from label to text
        Facts of a model, as in its card.
    checksums : mapping from name to SHA-256
        Of the files of a model.
    model_card : str
    """

    name: str
    holds: str = ""
    command: str = ""
    stage: str = ""
    subject: str = ""
    began: str = ""
    seconds: float | None = None
    memory_mb: float | None = None
    machine: str = ""
    device: str = ""
    seed: int | None = None
    settings: Mapping[str, Any] | None = None
    inputs: Sequence[Input] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""
    size: int | None = None
    sha256: str = ""
    state: str = ""
    done: int = 0
    failed: int = 0
    notes: Sequence[str] = ()
    parts: "Sequence[Description]" = ()
    model: Mapping[str, str] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    model_card: str = ""

    def as_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(asdict(self), indent=1)

    def as_text(self) -> str:
        """Return it in plain words."""
        blocks = ["\n".join([self.name, *_lines(self)])]
        # What all parts share is told once.
        shared = _shared(self.parts)
        if shared:
            blocks.append("\n".join(["in all of these:", *_rows(shared)]))
        blocks += ["\n".join([part.name, *_lines(part, frozenset(name for name, _ in shared))]) for part in self.parts]
        return "\n\n".join([*blocks, *([self.model_card.rstrip()] if self.model_card else [])])


def no_record_of(path: Path, damaged: Sequence[str] = ()) -> UserError:
    """Return the error for something that nothing says voxout made; `damaged`: records that cannot be read."""
    broken = f"; {some_of(damaged)} cannot be read" if damaged else ""
    advice = "Run the stage again, or copy the folder again." if damaged else "Check the path."
    return UserError(
        f"{private(path)}: no record of voxout says that it made this{broken}, expected {EXPECTED}. {advice}"
    )


def _shared(parts: Sequence[Description]) -> list[tuple[str, str]]:
    """Return the rows about command, machine and code that all parts have in common."""
    if len(parts) < 2:
        return []
    each = [dict(_rows_of(part)) for part in parts]
    names = ("made by", "machine", "seed", "settings", "versions", "note")
    return [(name, each[0][name]) for name in names if name in each[0] and len({o.get(name) for o in each}) == 1]


def _lines(own: Description, without: frozenset[str] = frozenset()) -> list[str]:
    return _rows((label, text) for label, text in _rows_of(own) if label not in without)


def _rows(pairs: Iterable[tuple[str, str]]) -> list[str]:
    lines = []
    for label, text in pairs:
        first, *rest = [line for part in text.split("\n") for line in wrap(part, _WIDTH) or [""]]
        lines.append(f"  {label:<{_LABEL}}{first}")
        lines += [f"  {'':<{_LABEL}}{line}" for line in rest]
    return lines


def _rows_of(own: Description) -> Iterator[tuple[str, str]]:
    """Yield a label and text for each thing that is known, or that the record of a result of today would know."""
    is_result = bool(own.stage or own.began)
    if own.holds:
        yield "holds", own.holds
    if own.subject:
        yield "of", own.subject
    if is_result or own.command:
        stage = f", stage {own.stage}" if own.stage else ""
        yield "made by", (own.command or f"a command that is {_NOT_RECORDED}") + stage
    if is_result:
        yield "when", _when(own)
        if own.machine or own.device:
            yield "machine", ", ".join(text for text in (own.machine or _NOT_RECORDED, own.device) if text)
    if own.done or own.failed:
        yield "subjects", f"{own.done} done" + (f", {own.failed} failed" if own.failed else "")
    if is_result:
        yield "from", "\n".join(_input_lines(own.inputs)) or _NOT_RECORDED
        yield "seed", _NOT_RECORDED if own.seed is None else str(own.seed)
        yield "settings", _settings(own.settings)
        installed = ", ".join(f"{name} {version}" for name, version in own.versions.items())
        yield "versions", (installed or _NOT_RECORDED) + (f"; commit {own.commit}" if own.commit else "")
    if own.size is not None:
        yield "file", f"{own.size:,} bytes" + (f", SHA-256 {own.sha256}" if own.sha256 else "")
    if own.state:
        yield "state", own.state
    for note in own.notes:
        yield "note", note


def _when(own: Description) -> str:
    try:
        began = datetime.fromisoformat(own.began).astimezone(UTC)
        text = f"{began:%Y-%m-%d %H:%M:%S} UTC" if len(own.began) > 10 else own.began
    except ValueError:
        text = own.began or _NOT_RECORDED
    took = f", {own.seconds:.4g} s" if own.seconds is not None else ""
    return text + took + (f", {own.memory_mb / 1024:.1f} GB of memory" if own.memory_mb else "")


def _settings(settings: Mapping[str, Any] | None) -> str:
    if settings is None:
        return _NOT_RECORDED
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items()) or "all as by default"


def _input_lines(inputs: Sequence[Input]) -> Iterator[str]:
    """Yield a line for each input; of many that differ only in their subject, the number."""
    groups: dict[str, list[Input]] = {}
    for each in inputs:
        kind, _, subject = each.name.rpartition(" ")
        groups.setdefault(kind if subject.startswith("sub-") else each.name, []).append(each)
    for kind, group in groups.items():
        if len(group) > _MOST_LISTED:
            yield f"{kind}: {counted(len(group), 'subject')}; --json lists them"
            continue
        for each in group:
            value = each.value if isinstance(each.value, str) else json.dumps(each.value)
            yield f"{each.name}: {value}" + (f" ({each.record})" if each.record else "")
