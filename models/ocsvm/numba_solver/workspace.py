"""Scratch memory for one location, reused for the next."""

import math
from collections import namedtuple

import numpy as np

from .jit import LANES, aligned, fastmath, strict, whole_lanes

HUGE = 1e300
# Coefficients this close to a bound are set to it; otherwise rounding would create spurious free vectors.
SNAP = 1e-12

# Weights smaller than this share of the largest one count as 0; it is far above `SNAP`.
SMALLEST_WEIGHT = 1e-9

Workspace = namedtuple(
    "Workspace", "rows known a upper g no_gain no_give line free which weights factor inverse step mask"
)
Workspace.__doc__ = """Arrays of the solver, for up to m subjects.

rows (m, width): rows of K - 1; known (m,): which rows are computed; a, upper, g (width,): coefficients, their upper
bounds and the gradient; no_gain, no_give (width,): 0 where a may increase (decrease), else `HUGE`; line (width,):
temporary values; free (m,): indices of the free vectors; which, weights (m,): arguments of `add_rows`; factor (m,
width), inverse, step (width,): the Newton system; mask: see `smo._tagged`.
"""


@strict
def make_workspace(m):
    """Allocate a `Workspace` for m subjects."""
    width = whole_lanes(m)
    mask = np.int64(1)
    while mask < width:
        mask *= 2
    vectors = aligned(8, width)
    return Workspace(
        aligned(m, width),
        np.zeros(m, np.bool_),
        vectors[0],
        vectors[1],
        vectors[2],
        vectors[3],
        vectors[4],
        vectors[5],
        np.zeros(m, np.int64),
        np.zeros(m, np.int64),
        np.zeros(m),
        aligned(width + LANES, width),
        vectors[6],
        vectors[7],
        mask - 1,
    )


@fastmath
def set_bounds(work, weights, m):
    """Set the upper bounds of a to the weights of the m subjects, in a unit of the size of the largest one.

    Padding columns get the bound 0, as subjects with a weight of 0 do: their a is fixed.

    Returns
    -------
    unit : float
        Largest power of two that is not above the largest weight. Solutions are in this unit, so that tolerances need
        no scale, and conversion is exact.
    total : float
        Sum of the bounds.
    n : int
        Number of bounds above 0.
    """
    upper = work.upper
    largest = 0.0
    for i in range(m):
        largest = max(largest, weights[i])
    unit = math.ldexp(1.0, math.frexp(largest)[1] - 1)
    smallest, per_unit = SMALLEST_WEIGHT * largest, 1.0 / unit
    total, n = 0.0, 0.0
    for i in range(m):
        bound = weights[i] * per_unit if weights[i] >= smallest else 0.0
        upper[i] = bound
        total += bound
        n += 1.0 if bound > 0.0 else 0.0
    for i in range(m, upper.shape[0]):
        upper[i] = 0.0
    return unit, total, int(n)
