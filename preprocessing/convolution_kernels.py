"""Compiled sums of a convolution along one axis, with a symmetric kernel given from its centre on."""

import numpy as np

from ..data_manifests.caches import compiled_reordering


@compiled_reordering
def along_middle_axis(values, half, out):
    """Convolve values (a, n, b) along n: fills `out`, of the same shape."""
    outer, n, width = values.shape
    reach = len(half) - 1
    for i in range(outer):
        for j in range(n):
            line, centre = out[i, j], values[i, j]
            for z in range(width):
                line[z] = half[0] * centre[z]
            k = 1
            # Four pairs of neighbours at a time, for fewer passes over the line.
            both = min(reach, j, n - 1 - j)
            while k + 3 <= both:
                w0, w1, w2, w3 = half[k], half[k + 1], half[k + 2], half[k + 3]
                b0, b1, b2, b3 = values[i, j - k], values[i, j - k - 1], values[i, j - k - 2], values[i, j - k - 3]
                a0, a1, a2, a3 = values[i, j + k], values[i, j + k + 1], values[i, j + k + 2], values[i, j + k + 3]
                for z in range(width):
                    near = w0 * (b0[z] + a0[z]) + w1 * (b1[z] + a1[z])
                    line[z] += near + (w2 * (b2[z] + a2[z]) + w3 * (b3[z] + a3[z]))
                k += 4
            while k <= both:
                w0, b0, a0 = half[k], values[i, j - k], values[i, j + k]
                for z in range(width):
                    line[z] += w0 * (b0[z] + a0[z])
                k += 1
            # At an edge, where one of the two does not exist.
            while k <= reach:
                if j - k >= 0 or j + k < n:
                    w0, a0 = half[k], values[i, j - k if j - k >= 0 else j + k]
                    for z in range(width):
                        line[z] += w0 * a0[z]
                k += 1


@compiled_reordering
def along_last_axis(values, half, out):
    """Convolve values (a, n) along n: fills `out`, of the same shape."""
    outer, n = values.shape
    reach = len(half) - 1
    padded = np.zeros(n + 2 * reach, values.dtype)
    for i in range(outer):
        padded[reach : reach + n] = values[i]
        line, centre = out[i], padded[reach:]
        for z in range(n):
            line[z] = half[0] * centre[z]
        k = 1
        while k + 3 <= reach:
            w0, w1, w2, w3 = half[k], half[k + 1], half[k + 2], half[k + 3]
            before, after = padded[reach - k - 3 :], padded[reach + k :]
            for z in range(n):
                near = w0 * (before[z + 3] + after[z]) + w1 * (before[z + 2] + after[z + 1])
                line[z] += near + (w2 * (before[z + 1] + after[z + 2]) + w3 * (before[z] + after[z + 3]))
            k += 4
        while k <= reach:
            w0, before, after = half[k], padded[reach - k :], padded[reach + k :]
            for z in range(n):
                line[z] += w0 * (before[z] + after[z])
            k += 1
