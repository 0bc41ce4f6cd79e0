"""Split of the controls by participant: reproducible, independent of the cohort, and according to column split."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from voxout.data_manifests.cohort.splits import split_controls
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.errors import UserError


def record(subject_id, session_id=None, group="control", split=None) -> SubjectRecord:
    path = Path(f"/{subject_id}{session_id}.nii")
    return SubjectRecord(subject_id, group, {"t1w": path}, session_id=session_id, split=split)


def cohort(*records) -> Manifest:
    return Manifest(tuple(records))


HUNDRED = [record(f"{n:03}") for n in range(100)]
IDS = st.lists(st.text("abc123", min_size=1, max_size=4), unique=True, min_size=2, max_size=30)
SHARES = st.floats(0, 0.95)


@given(ids=IDS, share=SHARES, seed=st.integers(0, 9))
def test_each_control_is_on_one_side_in_order(ids, share, seed):
    manifest = cohort(*map(record, ids))
    split = split_controls(manifest, held_out_share=share, seed=seed)
    assert sorted(split.train + split.held_out) == sorted(r.key for r in manifest)
    order = [r.key for r in manifest]
    assert list(split.train) == sorted(split.train, key=order.index)
    assert split.train and (bool(split.held_out) == (share > 0))


@given(ids=IDS, sessions=st.integers(2, 3), share=SHARES)
def test_sessions_of_a_participant_stay_together(ids, sessions, share):
    manifest = cohort(*(record(i, str(s)) for s in range(sessions) for i in ids))
    split = split_controls(manifest, held_out_share=share, seed=0)
    sides = [{key.split("_")[0] for key in side} for side in (split.train, split.held_out)]
    assert not sides[0] & sides[1]


@given(dropped=st.sets(st.integers(0, 99), max_size=60), seed=st.integers(0, 9))
def test_split_is_independent_of_the_other_participants(dropped, seed):
    full = split_controls(cohort(*HUNDRED), held_out_share=0.3, seed=seed)
    rest = split_controls(
        cohort(*reversed([r for n, r in enumerate(HUNDRED) if n not in dropped])), held_out_share=0.3, seed=seed
    )
    assert set(rest.held_out) <= set(full.held_out) and set(rest.train) <= set(full.train)


def test_share_is_met_on_average():
    counts = [len(split_controls(cohort(*HUNDRED), held_out_share=0.2, seed=s).held_out) for s in range(50)]
    assert sum(counts) / 50 == pytest.approx(20, abs=2)  # standard error 0.57
    assert len({split_controls(cohort(*HUNDRED), held_out_share=0.2, seed=s).held_out for s in range(50)}) == 50


def test_split_is_the_same_on_every_machine():
    split = split_controls(cohort(*HUNDRED[:12]), held_out_share=0.25, seed=1)
    assert split.held_out == ("sub-002", "sub-004", "sub-006", "sub-009")


def test_column_split_takes_precedence_over_the_share():
    records = [record(f"{n:03}", split="held_out" if n < 5 else "train") for n in range(20)]
    split = split_controls(cohort(*records), held_out_share=0.9, seed=0)
    assert split.held_out == tuple(r.key for r in records[:5])
    # Column split also applies with a share of 0, and to all sessions of the participant.
    twice = cohort(record("a", "1", split="held_out"), record("a", "2"), record("b"))
    assert split_controls(twice, held_out_share=0, seed=0).held_out == ("sub-a_ses-1", "sub-a_ses-2")


def test_where_held_out_controls_are_marked_no_other_is_drawn():
    records = [record(f"{n:03}", split="held_out" if n in (3, 7) else None) for n in range(40)]
    assert split_controls(cohort(*records), held_out_share=0.5, seed=0).held_out == ("sub-003", "sub-007")
    trained = [record(f"{n:03}", split="train" if n < 5 else None) for n in range(40)]
    held_out = split_controls(cohort(*trained), held_out_share=0.5, seed=0).held_out
    assert held_out and not {f"sub-{n:03}" for n in range(5)} & set(held_out), "the others are drawn"


def test_patients_are_not_split():
    split = split_controls(cohort(*HUNDRED[:5], record("p", group="patient")), held_out_share=0.2, seed=0)
    assert "sub-p" not in split.train + split.held_out


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (cohort(record("p", group="patient")), "contains no controls, expected healthy subjects for training"),
        (
            cohort(record("a", "1", split="train"), record("a", "2", split="held_out")),
            "sub-a: its sessions have split train and held_out, expected one split per participant",
        ),
        (cohort(record("a", split="held_out")), "all controls are held out, expected some for training"),
    ],
)
def test_error_messages(manifest, message):
    with pytest.raises(UserError, match=message):
        split_controls(manifest, held_out_share=0.2, seed=0)
