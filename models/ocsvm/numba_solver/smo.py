"""First stage: SMO with second-order working set selection (Fan, Chen, Lin, JMLR 2005)."""

import numpy as np

from .jit import fastmath
from .kernel_rows import kernel_row
from .workspace import HUGE, SNAP

_FIRST = np.int64(-0x7FFFFFFFFFFFFFFF)
_LAST = np.int64(0x7FFFFFFFFFFFFFFF)


@fastmath
def _tagged(value, index, mask):
    """Bits of a number >= 0, which sort like the number, with the lowest bits replaced by its index.

    The maximum over tagged integers gives the largest number and its index in one vectorised pass; maxima of floats do
    not vectorise here. The mask (a power of 2 minus 1) sets the number of bits for the index.
    """
    return (np.float64(value).view(np.int64) & ~mask) | (index & mask)


@fastmath
def extremes(g, no_gain, no_give, mask):
    """Find the highest g (g <= 0) among a that can decrease and the lowest among a that can increase: two indices."""
    giver = _LAST
    taker = _FIRST
    for j in range(g.shape[0]):
        giver = min(giver, _tagged(no_give[j] - g[j], j, mask))
        taker = max(taker, _tagged(-g[j] - no_gain[j], j, mask))
    return giver & mask, taker & mask


@fastmath
def _largest(values, mask):
    """Index of the largest of some numbers >= 0."""
    best = _FIRST
    for j in range(values.shape[0]):
        best = max(best, _tagged(values[j], j, mask))
    return best & mask


@fastmath
def start(work, points, m, n, total, gamma):
    """Set the initial a: the points farthest from the mean get their upper bound until the sum is `total`.

    Returns the mean of one row of 1 - K over the n points with a bound above 0. It is at most n/2 * s, with s the mean
    of the off-diagonal elements of 1 - K, as each pair occurs in two of the n rows.
    """
    rows, known, a, g, no_gain, no_give = work.rows, work.known, work.a, work.g, work.no_gain, work.no_give
    upper, distance = work.upper, work.line
    dimension, width = points.shape
    for j in range(width):
        a[j] = 0.0
        g[j] = 0.0
        no_gain[j] = 0.0 if upper[j] > 0.0 else HUGE
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
    for j in range(width):
        distance[j] = distance[j] if upper[j] > 0.0 else -HUGE
    for j in range(m):
        known[j] = False
    left = total
    row_mean = 0.0
    for _ in range(n):
        if left <= 0.0:
            break
        i = _largest(distance, work.mask)
        distance[i] = -HUGE
        share = min(left, upper[i])
        left -= share
        a[i] = share
        no_give[i] = 0.0
        no_gain[i] = 0.0 if share < upper[i] else HUGE
        kernel_row(points, width, points, i, gamma, rows, i)
        known[i] = True
        for j in range(width):
            g[j] += share * rows[i, j]
        if row_mean == 0.0:
            for j in range(m):
                row_mean -= rows[i, j] if upper[j] > 0.0 else 0.0
            row_mean /= n
    return row_mean


@fastmath
def smo_steps(work, points, gamma, tolerance, most):
    """Update working pairs until the KKT gap is below the tolerance, at most `most` times.

    The first of the pair has the highest g and is decreased; the second, whose kernel row may have to be computed,
    gives the largest estimated decrease of 1/2 a'Ka and is increased.
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
        # If the squares of the slopes underflow, take the lowest g.
        taker = best & mask if best > mask else lowest
        if not known[taker]:
            kernel_row(points, width, points, taker, gamma, rows, taker)
            known[taker] = True
        give, room = a[giver], work.upper[taker] - a[taker]
        step = min((highest - g[taker]) / max(-2.0 * rows[giver, taker], 1e-300), give, room)
        a[giver] = give - step
        no_gain[giver] = 0.0
        if give - step <= SNAP:
            a[giver] = 0.0
            no_give[giver] = HUGE
        a[taker] += step
        no_give[taker] = 0.0
        if room - step <= SNAP:
            a[taker] = work.upper[taker]
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
