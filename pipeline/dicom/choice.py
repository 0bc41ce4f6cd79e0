"""Choice of the T1w and the FLAIR among the series of a study: a clear case, the user's word, or a question."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...data_manifests.errors import UserError, private
from .kinds import DERIVED, FLAIR, T1W, UNKNOWN
from .study import Series, Study

_MOST_LISTED = 30
_ASKED_FOR = frozenset({T1W, FLAIR, UNKNOWN, DERIVED})
"""Kinds that a user may choose: tags do not tell everything, but a screenshot stays one."""
_PREFERENCES: tuple[Callable[[Series], bool], ...] = (
    lambda series: not series.has_contrast_agent,
    lambda series: series.is_3d,
)


@dataclass(frozen=True, eq=False)
class Chosen:
    """The series to convert.

    Attributes
    ----------
    t1w : Series
    flair : Series or None
    warnings : tuple of str
    """

    t1w: Series
    flair: Series | None
    warnings: tuple[str, ...] = ()


def choose_series(study: Study, series: str | None = None, flair: str | None = None) -> Chosen:
    """Choose the series of a study.

    Parameters
    ----------
    study : Study
    series, flair : str, optional
        Number or UID of the T1w and of the FLAIR; by default, the only one that its tags tell. Without a clear FLAIR,
        there is none.

    Raises
    ------
    UserError
        No clear T1w, or a named series that is missing or cannot be used. The message lists the series.
    """
    warnings: list[str] = []
    t1w = _named(study, series, T1W, "--series", warnings) if series else _only_t1w(study, warnings)
    if flair:
        return Chosen(t1w, _named(study, flair, FLAIR, "--flair-series", warnings), tuple(warnings))
    found = _preferred([one for one in study.series if one.kind == FLAIR and one.study_uid == t1w.study_uid])
    if len(found) > 1:
        labels = ", ".join(one.label for one in found)
        warnings.append(f"several FLAIR series ({labels}), and none was taken; choose one with --flair-series")
    return Chosen(t1w, found[0] if len(found) == 1 else None, tuple(warnings))


def _only_t1w(study: Study, warnings: list[str]) -> Series:
    candidates = [one for one in study.series if one.kind == T1W]
    found = _preferred(candidates)
    if len(found) == 1:
        if found[0].has_contrast_agent:
            warnings.append(f"{found[0].label}: a T1w with contrast agent; enhancing vessels can score high")
        return found[0]
    what = f"found {len(found)} T1w series" if found else "found no T1w series"
    if len({one.study_uid for one in found}) > 1:
        what += " of several studies"
    raise UserError(
        f"{private(study.folder, 'the study')}: {what}, expected one. "
        f"{'Choose one' if found else 'If one of these is a T1w, choose it'} with --series NUMBER: {_listed(study)}."
    )


def _preferred(candidates: Sequence[Series]) -> list[Series]:
    """Return the candidates of the first preferences that some of them have."""
    left = list(candidates)
    for preference in _PREFERENCES:
        left = [one for one in left if preference(one)] or left
    return left


def _named(study: Study, name: str, wanted: str, option: str, warnings: list[str]) -> Series:
    found = [one for one in study.series if name in (one.uid, str(one.number))]
    if len(found) != 1:
        what = "no series" if not found else f"{len(found)} series"
        raise UserError(
            f"{option} {name[:70]}: found {what} of this number or UID, expected one. Choose among: "
            f"{_listed(study, with_uid=len(found) > 1)}."
        )
    (one,) = found
    if one.kind not in _ASKED_FOR or one.kind in {T1W, FLAIR} - {wanted}:
        raise UserError(f"{option} {name[:70]}: is a {one.kind}, expected a {wanted}. Choose among: {_listed(study)}.")
    if one.kind != wanted:
        warnings.append(f"{one.label}: taken as {wanted} as you say; its tags say {one.kind}")
    return one


def _listed(study: Study, *, with_uid: bool = False) -> str:
    lines = [f"{one}, UID {one.uid}" if with_uid else str(one) for one in study.series[:_MOST_LISTED]]
    more = len(study.series) - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more else "")
