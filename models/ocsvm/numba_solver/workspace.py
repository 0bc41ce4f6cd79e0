"""Scratch memory for one location, reused for the next."""

from collections import namedtuple

import numpy as np

from .jit import LANES, aligned, strict, whole_lanes

HUGE = 1e300
# Coefficients this close to a bound are set to it; otherwise rounding would create spurious free vectors.
SNAP = 1e-12

Workspace = namedtuple("Workspace", "rows known a g no_gain no_give line free which weights factor inverse step mask")
Workspace.__doc__ = """Arrays of the solver, for up to m subjects.

rows (m, width): rows of K - 1; known (m,): which rows are computed; a, g (width,): coefficients and gradient; no_gain,
no_give (width,): 0 where a may increase (decrease), else `HUGE`; line (width,): temporary values; free (m,): indices of
the free vectors; which, weights (m,): arguments of `add_rows`; factor (m, width), inverse, step (width,): the Newton
system; mask: see `smo._tagged`.
"""


@strict
def make_workspace(m):
    """Allocate a `Workspace` for m subjects."""
    width = whole_lanes(m)
    mask = np.int64(1)
    while mask < width:
        mask *= 2
    vectors = aligned(7, width)
    return Workspace(
        aligned(m, width),
        np.zeros(m, np.bool_),
        vectors[0],
        vectors[1],
        vectors[2],
        vectors[3],
        vectors[4],
        np.zeros(m, np.int64),
        np.zeros(m, np.int64),
        np.zeros(m),
        aligned(width + LANES, width),
        vectors[5],
        vectors[6],
        mask - 1,
    )
