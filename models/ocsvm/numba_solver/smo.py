"""The first stage: steps along pairs, with second-order choice of the partner (Fan, Chen, Lin, JMLR 2005)."""

import numpy as np

from .jit import fastmath
from .kernel_rows import kernel_row
from .workspace import HUGE, SNAP

_FIRST = np.int64(-0x7FFFFFFFFFFFFFFF)
_LAST = np.int64(0x7FFFFFFFFFFFFFFF)


@fastmath
def _tagged(value, index, mask):
    """The bits of a number >= 0, which order as the number does, with its index in place of the last of them.

    A maximum over tagged integers finds the largest and where it is in one vectorised pass; maxima of floats do not
    vectorise here. The mask (one less than a power of 2) sets how many bits the index takes.
    """
    return (np.float64(value).view(np.int64) & ~mask) | (index & mask)


@fastmath
def extremes(g, no_gain, no_give, mask):
    """Where g (never above 0) is highest among those that can give, and where lowest among those that can gain."""
    giver = _LAST
    taker = _FIRST
    for j in range(g.shape[0]):
        giver = min(giver, _tagged(no_give[j] - g[j], j, mask))
        taker = max(taker, _tagged(-g[j] - no_gain[j], j, mask))
    return giver & mask, taker & mask


@fastmath
def _largest(values, mask):
    """Where the largest of some numbers >= 0 is."""
    best = _FIRST
    for j in range(values.shape[0]):
        best = max(best, _tagged(values[j], j, mask))
    return best & mask


@fastmath
def start(work, points, m, total, gamma):
    """Fill from the outside: the points farthest from the mean get a = 1 until `total` is spent.

    Returns the mean of one row of 1 - K, at most m/2 * s with s the mean of 1 - K off the diagonal: each pair occurs in
    two of the m rows.
    """
    rows, known, a, g, no_gain, no_give = work.rows, work.known, work.a, work.g, work.no_gain, work.no_give
    distance = work.line
    dimension, width = points.shape
    for j in range(width):
        a[j] = 0.0
        g[j] = 0.0
        no_gain[j] = 0.0
        no_give[j] = HUGE
        distance[j] = 0.0
    for k in range(dimension):
        centre = 0.0
        for j in range(m):
            centre += points[k, j]
        centre /= m
        for j in range(width):
            difference = points[k, j] - centre
            distance[j] += difference * difference
    for j in range(m, width):
        distance[j] = -HUGE
        no_gain[j] = HUGE
    for j in range(m):
        known[j] = False
    left = total
    row_mean = 0.0
    while left > 0.0:
        i = _largest(distance, work.mask)
        distance[i] = -HUGE
        share = min(left, 1.0)
        left -= share
        a[i] = share
        no_give[i] = 0.0
        no_gain[i] = 0.0 if share < 1.0 else HUGE
        kernel_row(points, width, points, i, gamma, rows, i)
        known[i] = True
        for j in range(width):
            g[j] += share * rows[i, j]
        if row_mean == 0.0:
            for j in range(m):
                row_mean -= rows[i, j]
            row_mean /= m
    return row_mean


@fastmath
def smo_steps(work, points, gamma, tolerance, most):
    """Move mass along pairs until the KKT gap is below the tolerance.

    The giver is the highest of g; the taker, whose row may be new, promises the largest decrease of 1/2 a'Ka.
    """
    rows, known, a, g, no_gain, no_give = work.rows, work.known, work.a, work.g, work.no_gain, work.no_give
    mask = work.mask
    width = g.shape[0]
    giver, lowest = extremes(g, no_gain, no_give, mask)
    for _ in range(most):
        highest = g[giver]
        if highest - (g[lowest] + no_gain[lowest]) <= tolerance:
            return
        best = np.int64(0)
        for j in range(width):
            slope = max(highest - (g[j] + no_gain[j]), 0.0)
            best = max(best, _tagged(slope * slope / max(-rows[giver, j], 1e-300), j, mask))
        # Where even squares of slopes underflow, the lowest will do.
        taker = best & mask if best > mask else lowest
        if not known[taker]:
            kernel_row(points, width, points, taker, gamma, rows, taker)
            known[taker] = True
        give, room = a[giver], 1.0 - a[taker]
        step = min((highest - g[taker]) / max(-2.0 * rows[giver, taker], 1e-300), give, room)
        a[giver] = give - step
        no_gain[giver] = 0.0
        if give - step <= SNAP:
            a[giver] = 0.0
            no_give[giver] = HUGE
        a[taker] += step
        no_give[taker] = 0.0
        if room - step <= SNAP:
            a[taker] = 1.0
            no_gain[taker] = HUGE
        first = _LAST
        last = _FIRST
        for j in range(width):
            value = g[j] + step * (rows[taker, j] - rows[giver, j])
            g[j] = value
            first = min(first, _tagged(no_give[j] - value, j, mask))
            last = max(last, _tagged(-value - no_gain[j], j, mask))
        giver = first & mask
        lowest = last & mask
