"""Rows of the centred kernel and their weighted sums."""

import numpy as np

from .jit import fastmath, strict


@strict
def expm1_negative(x):
    """expm1(-x) for x >= 0 with a relative error of 6e-16; without branches and calls, so that loops vectorise."""
    x = min(x, 64.0)
    n = np.floor(x * 1.4426950408889634 + 0.5)
    r = n * 1.90821492927058770002e-10 - (x - n * 6.93147180369123816490e-01)
    p = 1 / 479001600
    p = p * r + 1 / 39916800
    p = p * r + 1 / 3628800
    p = p * r + 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 0.5
    p = p * r * r + r
    power = np.int64((1023 - np.int64(n)) << 52).view(np.float64)
    return power * p + (power - 1.0)


@fastmath
def kernel_row(points, width, others, i, gamma, out, o):
    """K - 1 between column i of `others` and the first `width` columns of `points`: fills row o of `out`.

    Distances are computed from differences, as the expansion with norms is inexact for near neighbours.
    """
    dimension = points.shape[0]
    quads = dimension // 4 * 4
    for j in range(width):
        out[o, j] = 0.0
    # Four dimensions at a time, for fewer passes over `out`.
    for k in range(0, quads, 4):
        c0, c1, c2, c3 = others[k, i], others[k + 1, i], others[k + 2, i], others[k + 3, i]
        for j in range(width):
            d0 = points[k, j] - c0
            d1 = points[k + 1, j] - c1
            d2 = points[k + 2, j] - c2
            d3 = points[k + 3, j] - c3
            out[o, j] += d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3
    for k in range(quads, dimension):
        c0 = others[k, i]
        for j in range(width):
            d0 = points[k, j] - c0
            out[o, j] += d0 * d0
    for j in range(width):
        out[o, j] = expm1_negative(gamma * out[o, j])


@fastmath
def add_rows(total, width, weights, which, n, rows):
    """Add the sum of weights[f] * rows[which[f]] over f < n to `total`, four rows per pass."""
    quads = n // 4 * 4
    for f in range(0, quads, 4):
        i0, i1, i2, i3 = which[f], which[f + 1], which[f + 2], which[f + 3]
        w0, w1, w2, w3 = weights[f], weights[f + 1], weights[f + 2], weights[f + 3]
        for j in range(width):
            total[j] += w0 * rows[i0, j] + w1 * rows[i1, j] + w2 * rows[i2, j] + w3 * rows[i3, j]
    for f in range(quads, n):
        i0, w0 = which[f], weights[f]
        for j in range(width):
            total[j] += w0 * rows[i0, j]


@fastmath
def row_dot(weights, width, rows, o):
    """Sum of weights[j] * rows[o, j] over j < `width`."""
    total = 0.0
    for j in range(width):
        total += weights[j] * rows[o, j]
    return total
