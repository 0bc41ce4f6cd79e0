"""Compiled kernels of the evaluation: sorting, counting, curves, connected components and clusters.

All compiled functions are kept in this one file: numba's disk cache only tracks changes of the file that defines a
function, and would keep an outdated copy of a helper that was changed in another file.
"""

from collections import namedtuple

import numpy as np

from ...data_manifests.caches import compiled

_DIGIT_BITS = 11
_DIGITS = 2**_DIGIT_BITS
IOU_STEPS = 100
"""Overlaps are stored in hundredths, rounded down; finer values would change with every voxel added to a cluster."""
SMALLEST_IOU_STEP = 10
"""A cluster and a lesion can be matched from IoU 0.1 on."""
OUTGROWN = IOU_STEPS // SMALLEST_IOU_STEP
"""The IoU of a cluster more than this many times as large as a lesion stays below `SMALLEST_IOU_STEP`."""


def _allocating_nothing(function):
    """Compile a function that allocates no arrays and lists: references to its arguments need not be counted."""
    return compiled(function, _nrt=False)


# -- ranks -----------------------------------------------------------------------------------------------------------
@compiled
def sorted_order(values, carry):
    """Sort float32 numbers without NaN in ascending order; -0 and 0 are equal. Return the values and their old indices.

    Radix sort in linear time, with three digits of eleven bits. The indices are returned only if `carry` is true;
    otherwise an empty array takes their place.
    """
    n = len(values)
    keys, other = np.empty(n, np.uint32), np.empty(n, np.uint32)
    places = np.empty(n if carry else 0, np.int32)
    other_places = np.empty(n if carry else 0, np.int32)
    counts = np.zeros((3, _DIGITS), np.int64)
    bits = values.view(np.uint32)
    for i in range(n):
        # The bit patterns of positive floats ascend with the value, those of negative floats descend.
        b = bits[i]
        key = ~b if b >> np.uint32(31) else b | np.uint32(0x80000000)
        if b == np.uint32(0x80000000):
            key = b
        keys[i] = key
        counts[0, key & np.uint32(_DIGITS - 1)] += 1
        counts[1, (key >> np.uint32(_DIGIT_BITS)) & np.uint32(_DIGITS - 1)] += 1
        counts[2, key >> np.uint32(2 * _DIGIT_BITS)] += 1
        if carry:
            places[i] = i
    for digit in range(3):
        shift = np.uint32(digit * _DIGIT_BITS)
        start = np.int64(0)
        for d in range(_DIGITS):
            start, counts[digit, d] = start + counts[digit, d], start
        for i in range(n):
            key = keys[i]
            d = (key >> shift) & np.uint32(_DIGITS - 1)
            to = counts[digit, d]
            counts[digit, d] = to + 1
            other[to] = key
            if carry:
                other_places[to] = places[i]
        keys, other = other, keys
        places, other_places = other_places, places
    for i in range(n):
        key = keys[i]
        keys[i] = key ^ np.uint32(0x80000000) if key >> np.uint32(31) else ~key
    return keys.view(np.float32), places


@compiled
def counted_by_rank(ordered, dividers, kept):
    """Histogram of ascending scores; scores of low rank share a bin, but no bin spans a divider.

    The highest `kept` scores get one bin each; a lower bin holds at most 1/kept of the scores at or above it. Scores
    equal to a divider get their own bin. A bin is represented by its middle score, so that errors of thresholds inside
    the bin are balanced.
    """
    n = len(ordered)
    values, counts = np.empty(n, np.float32), np.empty(n, np.int32)
    bins, divider, high, after_tie = 0, len(dividers) - 1, n, False
    i = n
    while i > 0:
        score, low = ordered[i - 1], i - 1
        while low > 0 and ordered[low - 1] == score:
            low -= 1
        parted, tie = after_tie, False
        while divider >= 0 and dividers[divider] >= score:
            parted, tie = True, dividers[divider] == score
            divider -= 1
        if i < high and (parted or high - low > max((n - high) // kept, 1)):
            values[bins], counts[bins] = ordered[i + (high - i) // 2], high - i
            bins += 1
            high = i
        after_tie = tie
        i = low
    if n:
        values[bins], counts[bins] = ordered[high // 2], high
        bins += 1
    return values[:bins][::-1].copy(), counts[:bins][::-1].copy()


@compiled
def distinct(ordered, places, weights):
    """Distinct values of ascending numbers, their counts and the sums of their weights."""
    n = len(ordered)
    values, counts, sums = np.empty(n, np.float32), np.empty(n, np.int32), np.zeros(n)
    bins = 0
    for i in range(n):
        if i == 0 or ordered[i] != ordered[i - 1]:
            values[bins], counts[bins] = ordered[i], 0
            bins += 1
        counts[bins - 1] += 1
        if len(weights):
            sums[bins - 1] += weights[places[i]]
    return values[:bins].copy(), counts[:bins].copy(), sums[:bins].copy()


@compiled
def add_between(edges, values, counts, totals):
    """Add counts of ascending values to bins.

    Bin 2i + 1 holds values equal to edge i, bin 2i those between edges i - 1 and i.
    """
    edge = 0
    for i in range(len(values)):
        value = values[i]
        while edge < len(edges) and edges[edge] < value:
            edge += 1
        on_edge = edge < len(edges) and edges[edge] == value
        totals[2 * edge + (1 if on_edge else 0)] += counts[i]


# -- curves: rows of counts, bins in ascending order of score --------------------------------------------------------
@compiled
def auroc_rows(healthy, lesion):
    """Area under the ROC curve of each row; NaN if a class is missing."""
    areas = np.empty(len(healthy))
    for row in range(len(healthy)):
        below, hits, area = 0.0, 0.0, 0.0
        for b in range(healthy.shape[1]):
            area += lesion[row, b] * (below + healthy[row, b] / 2)
            below += healthy[row, b]
            hits += lesion[row, b]
        areas[row] = area / (below * hits) if below > 0 and hits > 0 else np.nan
    return areas


@compiled
def area_rows(healthy, hits, limit):
    """Area under recall over FPR from 0 to `limit` (interpolated) over `limit`; NaN if a class is missing."""
    areas = np.empty(len(healthy))
    for row in range(len(healthy)):
        total_x, total_y = healthy[row].sum(), hits[row].sum()
        if not (total_x > 0 and total_y > 0):
            areas[row] = np.nan
            continue
        end = limit * total_x
        x, y, area = 0.0, 0.0, 0.0
        for b in range(healthy.shape[1] - 1, -1, -1):
            width, rise = healthy[row, b], hits[row, b]
            if x + width > end:
                share = (end - x) / width
                area += (end - x) * (y + rise * share / 2)
                x = end
                break
            area += width * (y + rise / 2)
            x += width
            y += rise
        areas[row] = area / (end * total_y)
    return areas


@compiled
def average_precision_rows(healthy, lesion):
    """Average precision of each row: sum of precision times recall step; NaN without lesion voxels."""
    precisions = np.empty(len(healthy))
    for row in range(len(healthy)):
        true, flagged, total = 0.0, 0.0, 0.0
        for b in range(healthy.shape[1] - 1, -1, -1):
            step = lesion[row, b]
            true += step
            flagged += step + healthy[row, b]
            if step > 0:
                total += step * true / flagged
        precisions[row] = total / true if true > 0 else np.nan
    return precisions


@compiled
def best_dice_rows(healthy, lesion):
    """Best Dice over all thresholds of each row and its bin; NaN and the highest bin without lesion voxels."""
    best, where = np.empty(len(healthy)), np.empty(len(healthy), np.int64)
    for row in range(len(healthy)):
        positives = lesion[row].sum()
        true, flagged = 0.0, 0.0
        best[row], where[row] = -1.0, healthy.shape[1] - 1
        for b in range(healthy.shape[1] - 1, -1, -1):
            true += lesion[row, b]
            flagged += lesion[row, b] + healthy[row, b]
            dice = 2 * true / (flagged + positives) if positives > 0 else np.nan
            if dice > best[row]:
                best[row], where[row] = dice, b
        if not positives > 0:
            best[row] = np.nan
    return best, where


@compiled
def add_dice(edges, healthy_scores, healthy_counts, lesion_scores, lesion_counts, totals):
    """Add the Dice of a scan with lesions at each of the ascending thresholds `edges` to `totals`."""
    # Flagged and lesion voxels together.
    both, true = float(lesion_counts.sum()), 0.0
    h, le = len(healthy_scores) - 1, len(lesion_scores) - 1
    for edge in range(len(edges) - 1, -1, -1):
        while h >= 0 and healthy_scores[h] >= edges[edge]:
            both += healthy_counts[h]
            h -= 1
        while le >= 0 and lesion_scores[le] >= edges[edge]:
            both += lesion_counts[le]
            true += lesion_counts[le]
            le -= 1
        totals[edge] += 2 * true / both


# -- connected components and clusters in a padded box ---------------------------------------------------------------
@compiled
def _find(parent, voxel):
    while parent[voxel] != voxel:
        parent[voxel] = parent[parent[voxel]]
        voxel = parent[voxel]
    return voxel


@compiled
def label_components(inside, steps):
    """Label the connected components of a mask from 1, in the order of their first voxel.

    Parameters
    ----------
    inside : ndarray of bool, (N,)
        Flattened box, padded by one voxel of background.
    steps : ndarray of int64
        Offsets to the neighbours that precede a voxel.

    Returns
    -------
    labels : ndarray of int32, (N,)
    sizes : ndarray of int64, (components + 1,)
        Voxels per label; 0 for label 0.
    """
    parent = np.full(len(inside), -1, np.int32)
    for voxel in range(len(inside)):
        if not inside[voxel]:
            continue
        root = voxel
        parent[voxel] = voxel
        for step in steps:
            if parent[voxel + step] >= 0:
                other = _find(parent, voxel + step)
                if other < root:
                    parent[root] = other
                    root = other
                elif root < other:
                    parent[other] = root
    sizes = [0]
    for voxel in range(len(inside)):
        if parent[voxel] == voxel:
            parent[voxel] = -1 - len(sizes)
            sizes.append(1)
        elif parent[voxel] >= 0:
            # The root precedes its members, so everything in between is already numbered.
            label = parent[parent[voxel]]
            parent[voxel] = label
            sizes[-1 - label] += 1
    for voxel in range(len(inside)):
        parent[voxel] = -1 - parent[voxel]
    return parent, np.array(sizes)


Forest = namedtuple("Forest", "parent size following on_lesion")
Forest.__doc__ = """Union-find forest of the voxels added so far; each tree is a connected component. Arrays (N,).

parent: another voxel of the tree, the voxel itself at the root, -1 before it is added; size, on_lesion: at the root,
the number of voxels, and whether one of them lies on a lesion; following: circular list of the voxels of a tree, which
is traversed once, when the tree becomes a cluster.
"""

Lesions = namedtuple("Lesions", "labels sizes found")
Lesions.__doc__ = """Arguments and result of `grow_clusters`: labels (N,), sizes and found (number of lesions,)."""

Overlaps = namedtuple("Overlaps", "first following lesion voxels row")
Overlaps.__doc__ = """Linked lists of the overlaps of trees with lesions.

first (N,): at the root, the first overlap of a tree, or -1. One element per overlap: following: the next one of the
tree, or -1; lesion: from 0; voxels: number in the tree and the lesion; row: its open row, or 0.
"""


@compiled
def _no_overlaps(n_voxels, n_overlaps):
    return Overlaps(
        np.full(n_voxels, -1, np.int32),
        np.full(n_overlaps, -1, np.int32),
        np.zeros(n_overlaps, np.int32),
        np.ones(n_overlaps, np.int64),
        np.zeros(n_overlaps, np.int32),
    )


@_allocating_nothing
def _counts(forest, root, smallest):
    """Return the number of clusters, 0 or 1, and of false clusters in a tree."""
    if forest.size[root] < smallest:
        return 0, 0
    return 1, 0 if forest.on_lesion[root] else 1


@_allocating_nothing
def _mark_found(following, start, lesions, score):
    """Store the score for the lesions that a new cluster overlaps, if they were not found before."""
    voxel = start
    while True:
        label = lesions.labels[voxel]
        if label > 0 and lesions.found[label - 1] == -np.inf:
            lesions.found[label - 1] = score
        voxel = following[voxel]
        if voxel == start:
            return


@_allocating_nothing
def _join(forest, lesions, root, other, smallest, score):
    """Join two trees; return the root of the joined tree, the other, and the changes of the `_counts`."""
    parent, size, following, on_lesion = forest
    clusters, false_clusters = _counts(forest, root, smallest)
    other_clusters, other_false = _counts(forest, other, smallest)
    if size[root] + size[other] >= smallest:
        for side in (root, other):
            if size[side] < smallest:
                _mark_found(following, side, lesions, score)
    if size[root] < size[other]:
        root, other = other, root
    parent[other] = root
    size[root] += size[other]
    following[root], following[other] = following[other], following[root]
    on_lesion[root] = on_lesion[root] or on_lesion[other]
    joined, joined_false = _counts(forest, root, smallest)
    return root, other, joined - clusters - other_clusters, joined_false - false_clusters - other_false


@compiled
def _move_overlaps(overlaps, rows, root, other, size, lesion_sizes, score):
    """Add the overlaps of the tree `other` to those of the tree that it was joined to."""
    first, following, lesion, voxels, _ = overlaps
    overlap = first[other]
    first[other] = -1
    while overlap >= 0:
        after = following[overlap]
        _end_row(overlaps, rows, overlap, score)
        if size <= OUTGROWN * lesion_sizes[lesion[overlap]]:
            same = first[root]
            while same >= 0 and lesion[same] != lesion[overlap]:
                same = following[same]
            if same >= 0:
                voxels[same] += voxels[overlap]
            else:
                following[overlap] = first[root]
                first[root] = overlap
        overlap = after


@compiled
def _record_overlaps(overlaps, rows, root, size, lesion_sizes, smallest, score):
    """Begin a new row for each overlap of a tree whose IoU has changed; drop lesions that the tree has outgrown."""
    first, following, lesion, voxels, row = overlaps
    before, overlap = -1, first[root]
    while overlap >= 0:
        lesion_size, step = lesion_sizes[lesion[overlap]], 0
        if size >= smallest:
            step = IOU_STEPS * voxels[overlap] // (size + lesion_size - voxels[overlap])
        if step < SMALLEST_IOU_STEP:
            step = 0
        if step != rows[row[overlap]][4]:
            _end_row(overlaps, rows, overlap, score)
            if step > 0:
                row[overlap] = len(rows)
                rows.append((score, np.float32(-np.inf), np.int32(root), lesion[overlap], np.int32(step)))
        if size <= OUTGROWN * lesion_size:
            before = overlap
        elif before >= 0:
            following[before] = following[overlap]
        else:
            first[root] = following[overlap]
        overlap = following[overlap]


@compiled
def _end_row(overlaps, rows, overlap, score):
    """End the open row of an overlap, if there is one, above a score."""
    row = overlaps.row[overlap]
    if row > 0:
        highest, _, cluster, lesion, step = rows[row]
        rows[row] = highest, score, cluster, lesion, step
        overlaps.row[overlap] = 0


@compiled
def _columns(rows):
    """Columns of the rows as arrays, without row 0."""
    # In a function with comprehensions, numba drops assignments such as overlaps.first[voxel] = 0 as dead code.
    return (
        np.array([row[0] for row in rows[1:]]),
        np.array([row[1] for row in rows[1:]]),
        np.array([row[2] for row in rows[1:]]),
        np.array([row[3] for row in rows[1:]]),
        np.array([row[4] for row in rows[1:]]),
    )


@compiled
def grow_clusters(values, order, labels, touches, lesion_sizes, steps, smallest):
    """Add voxels in descending order of score, join them to their neighbours and record all changes per score level.

    Parameters
    ----------
    values : ndarray of float32, (N,)
        Flattened box, padded by one voxel of -inf.
    order : ndarray of int32
        Voxels to add, in descending order of score.
    labels : ndarray of int32, (N,)
        Number of the lesion; 0 outside.
    touches : ndarray of bool, (N,)
        Voxels of any lesion: a cluster that contains one is not false.
    lesion_sizes : ndarray of int64
        Number of voxels of lesions 1, 2, ...
    steps : ndarray of int64
        Offsets to the neighbours of a voxel.
    smallest : int
        Minimum number of voxels of a cluster.

    Returns
    -------
    thresholds, clusters, false_clusters : ndarray
        One row per change of the counts; a row holds from its threshold down to just above the next.
    found : ndarray of float32
        Highest threshold at which a cluster touches each lesion; -inf if none does.
    highest, below : ndarray of float32
        Thresholds ``below < t <= highest`` at which a cluster and a lesion have an IoU of `step` hundredths, at least
        `SMALLEST_IOU_STEP`.
    cluster, lesion, step : ndarray of int32
        Lesions are counted from 0.
    """
    parent, following = np.full(len(values), -1, np.int32), np.zeros(len(values), np.int32)
    size = np.zeros(len(values), np.int32)
    forest = Forest(parent, size, following, touches.copy())
    lesions = Lesions(labels, lesion_sizes, np.full(len(lesion_sizes), -np.inf, np.float32))
    overlaps, n_overlaps = _no_overlaps(len(values), lesion_sizes.sum()), 0
    first = overlaps.first
    # Row 0 (highest, below, cluster, lesion, step) stands for no overlap, element 0 for scores above the highest.
    rows = [(np.float32(0), np.float32(0), np.int32(0), np.int32(0), np.int32(0))]
    thresholds, changes = np.empty(len(order) + 1, np.float32), 0
    clusters, false_clusters = np.zeros(len(order) + 1, np.int32), np.zeros(len(order) + 1, np.int32)
    n_clusters, n_false, level_start = 0, 0, 0
    for k in range(len(order)):
        voxel = order[k]
        score, root = values[voxel], np.int64(voxel)
        parent[voxel], following[voxel], size[voxel] = voxel, voxel, 1
        if labels[voxel] > 0:
            first[voxel], overlaps.lesion[n_overlaps] = n_overlaps, labels[voxel] - 1
            n_overlaps += 1
        if smallest <= 1:
            n_clusters, n_false = n_clusters + 1, n_false + (0 if touches[voxel] else 1)
            _mark_found(following, root, lesions, score)
        for step in steps:
            if parent[voxel + step] >= 0:
                other = _find(parent, voxel + step)
                if other != root:
                    root, other, more, more_false = _join(forest, lesions, root, other, smallest, score)
                    n_clusters, n_false = n_clusters + more, n_false + more_false
                    if first[other] >= 0:
                        _move_overlaps(overlaps, rows, root, other, size[root], lesion_sizes, score)
        if k + 1 < len(order) and values[order[k + 1]] == score:
            continue
        if n_clusters != clusters[changes] or n_false != false_clusters[changes]:
            changes += 1
            thresholds[changes], clusters[changes], false_clusters[changes] = score, n_clusters, n_false
        recorded = -1
        for member in range(level_start, k + 1):
            root = _find(parent, order[member])
            if first[root] >= 0 and root != recorded:
                recorded = root
                _record_overlaps(overlaps, rows, root, size[root], lesion_sizes, smallest, score)
        level_start = k + 1
    changed = slice(1, changes + 1)
    counted = thresholds[changed].copy(), clusters[changed].copy(), false_clusters[changed].copy()
    return (*counted, lesions.found, *_columns(rows))
