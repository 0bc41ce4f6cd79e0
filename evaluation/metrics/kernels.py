"""Compiled kernels of the evaluation: sorting, counting, curves, connected components and clusters.

All compiled functions are kept in this one file: numba's disk cache only tracks changes of the file that defines a
function, and would keep an outdated copy of a helper that was changed in another file.
"""

import numpy as np

from ...data_manifests.caches import compiled

_DIGIT_BITS = 11
_DIGITS = 2**_DIGIT_BITS
IOU_STEPS = 100
"""Overlaps are stored in hundredths, rounded down; finer values would change with every voxel added to a cluster."""
SMALLEST_IOU_STEP = 10
"""A cluster and a lesion can be matched from IoU 0.1 on."""


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


@compiled
def _mark_found(following, start, labels, found, score):
    voxel = start
    while True:
        label = labels[voxel]
        if label > 0 and found[label - 1] == -np.inf:
            found[label - 1] = score
        voxel = following[voxel]
        if voxel == start:
            return


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
    row_from, row_until : ndarray of float32
        Thresholds ``row_until < t <= row_from`` at which a cluster and a lesion have an IoU of `row_step` hundredths,
        at least `SMALLEST_IOU_STEP`.
    row_cluster, row_lesion, row_step : ndarray of int32
        Lesions are counted from 0.
    """
    parent = np.full(len(values), -1, dtype=np.int32)
    size = np.zeros(len(values), dtype=np.int32)
    # Circular list of the voxels of each tree, traversed once when the tree becomes a cluster.
    following = np.zeros(len(values), dtype=np.int32)
    on_lesion = touches.copy()
    found = np.full(len(lesion_sizes), -np.inf, dtype=np.float32)
    # Linked list of the lesions that a tree overlaps: overlap in voxels and the last row recorded for the pair.
    head = np.full(len(values), -1, dtype=np.int32)
    n_nodes = lesion_sizes.sum() + 1
    node_lesion, node_next = np.zeros(n_nodes, np.int32), np.zeros(n_nodes, np.int32)
    node_overlap, node_row = np.zeros(n_nodes, np.int64), np.full(n_nodes, -1, np.int32)
    nodes = 0
    row_from, row_until = [np.float32(0) for _ in range(0)], [np.float32(0) for _ in range(0)]
    row_cluster, row_lesion = [np.int32(0) for _ in range(0)], [np.int32(0) for _ in range(0)]
    row_step = [np.int32(0) for _ in range(0)]
    thresholds = np.empty(len(order), dtype=np.float32)
    cluster_events = np.empty(len(order), dtype=np.int32)
    false_events = np.empty(len(order), dtype=np.int32)
    events, clusters, false_clusters = 0, 0, 0
    last_clusters, last_false = 0, 0
    level_start = 0
    # The IoU of a cluster more than this many times as large as a lesion stays below the limit.
    outgrown = IOU_STEPS // SMALLEST_IOU_STEP
    for k in range(len(order)):
        voxel = order[k]
        score = values[voxel]
        parent[voxel] = voxel
        following[voxel] = voxel
        size[voxel] = 1
        root = voxel
        if labels[voxel] > 0:
            node_lesion[nodes], node_overlap[nodes], node_next[nodes] = labels[voxel] - 1, 1, -1
            head[voxel] = nodes
            nodes += 1
        if smallest <= 1:
            clusters += 1
            if not on_lesion[voxel]:
                false_clusters += 1
            _mark_found(following, voxel, labels, found, score)
        for step in steps:
            neighbour = voxel + step
            if parent[neighbour] < 0:
                continue
            other = _find(parent, neighbour)
            if other == root:
                continue
            for side in (root, other):
                if size[side] >= smallest:
                    clusters -= 1
                    if not on_lesion[side]:
                        false_clusters -= 1
            if size[root] + size[other] >= smallest:
                for side in (root, other):
                    if size[side] < smallest:
                        _mark_found(following, side, labels, found, score)
            if size[root] < size[other]:
                root, other = other, root
            parent[other] = root
            size[root] += size[other]
            following[root], following[other] = following[other], following[root]
            on_lesion[root] = on_lesion[root] or on_lesion[other]
            if size[root] >= smallest:
                clusters += 1
                if not on_lesion[root]:
                    false_clusters += 1
            node = head[other]
            head[other] = -1
            while node >= 0:
                after = node_next[node]
                if node_row[node] >= 0:
                    row_until[node_row[node]] = score
                    node_row[node] = -1
                lesion = node_lesion[node]
                if size[root] <= outgrown * lesion_sizes[lesion]:
                    same = head[root]
                    while same >= 0 and node_lesion[same] != lesion:
                        same = node_next[same]
                    if same >= 0:
                        node_overlap[same] += node_overlap[node]
                    else:
                        node_next[node] = head[root]
                        head[root] = node
                node = after
        if k + 1 < len(order) and values[order[k + 1]] == score:
            continue
        if clusters != last_clusters or false_clusters != last_false:
            thresholds[events] = score
            cluster_events[events] = clusters
            false_events[events] = false_clusters
            events += 1
            last_clusters, last_false = clusters, false_clusters
        for member in range(level_start, k + 1):
            root = _find(parent, order[member])
            before, node = -1, head[root]
            while node >= 0:
                lesion, after, row = node_lesion[node], node_next[node], node_row[node]
                gone = size[root] > outgrown * lesion_sizes[lesion]
                step = 0
                if size[root] >= smallest and not gone:
                    joint = size[root] + lesion_sizes[lesion] - node_overlap[node]
                    step = IOU_STEPS * node_overlap[node] // joint
                    if step < SMALLEST_IOU_STEP:
                        step = 0
                if step != (row_step[row] if row >= 0 else 0):
                    if row >= 0:
                        row_until[row] = score
                        node_row[node] = -1
                    if step > 0:
                        node_row[node] = len(row_from)
                        row_from.append(score)
                        row_until.append(np.float32(-np.inf))
                        row_cluster.append(np.int32(root))
                        row_lesion.append(np.int32(lesion))
                        row_step.append(np.int32(step))
                if not gone:
                    before = node
                elif before >= 0:
                    node_next[before] = after
                else:
                    head[root] = after
                node = after
        level_start = k + 1
    return (
        thresholds[:events].copy(),
        cluster_events[:events].copy(),
        false_events[:events].copy(),
        found,
        np.array(row_from),
        np.array(row_until),
        np.array(row_cluster),
        np.array(row_lesion),
        np.array(row_step),
    )
