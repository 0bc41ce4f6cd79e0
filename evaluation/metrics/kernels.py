"""The compiled core of the evaluation: sorting, counting, curves, components and clusters.

All compiled functions of the package live in this one file on purpose: numba's cache on disk watches the file that
defines a function, and would go on using an outdated copy of a helper that had changed in another file.
"""

import numpy as np

from ...data_manifests.caches import compiled

_DIGIT_BITS = 11
_DIGITS = 2**_DIGIT_BITS
IOU_STEPS = 100
"""Overlaps are told in hundredths, rounded down: finer ones change with every voxel that joins a cluster."""
SMALLEST_IOU_STEP = 10
"""IoU >= 0.1: from there on a cluster and a lesion may be matched."""


# -- ranks -----------------------------------------------------------------------------------------------------------
@compiled
def sorted_order(values, carry):
    """Sort float32 numbers without NaN, -0 and 0 alike: their values, ascending, and where each one stood.

    A radix sort over the bits of the numbers, three digits of eleven: linear, where comparing is not. The places are
    carried along only if `carry`; otherwise an empty array is returned for them.
    """
    n = len(values)
    keys, other = np.empty(n, np.uint32), np.empty(n, np.uint32)
    places = np.empty(n if carry else 0, np.int32)
    other_places = np.empty(n if carry else 0, np.int32)
    counts = np.zeros((3, _DIGITS), np.int64)
    bits = values.view(np.uint32)
    for i in range(n):
        # Of the bits of a float, those of positive numbers ascend and those of negative ones descend.
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
    """Distinct scores and their counts, of ascending scores; low ranks share a bin, never across a divider.

    The highest `kept` scores keep a bin each; a bin below holds at most a share 1/kept of the scores at or above it.
    A score that equals a divider is a tie with it and stands alone. Its middle score stands for a bin, so that
    thresholds inside it err to either side alike.
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
    """Distinct values of ascending numbers, how often each occurs, and the sum of their weights."""
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
    """Add counts of ascending values to bins: bin 2i + 1 is edge i itself, bin 2i lies between edges i - 1 and i."""
    edge = 0
    for i in range(len(values)):
        value = values[i]
        while edge < len(edges) and edges[edge] < value:
            edge += 1
        on_edge = edge < len(edges) and edges[edge] == value
        totals[2 * edge + (1 if on_edge else 0)] += counts[i]


# -- curves: rows of counts over bins that ascend with the score -----------------------------------------------------
@compiled
def auroc_rows(healthy, lesion):
    """Area under the ROC curve of each row; NaN where a class is missing."""
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
    """Area under recall over FPR from 0 to `limit`, over `limit`, interpolated there; NaN where a class is missing."""
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
    """Sum of precision times step of recall over the bins of each row; NaN without a lesion voxel."""
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
    """The best Dice over all thresholds of each row, and its bin; NaN and the highest bin without a lesion voxel."""
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


# -- components and clusters in a framed box -------------------------------------------------------------------------
@compiled
def _find(parent, voxel):
    while parent[voxel] != voxel:
        parent[voxel] = parent[parent[voxel]]
        voxel = parent[voxel]
    return voxel


@compiled
def label_components(inside, steps):
    """Number the components of a mask from 1 in the order of their first voxel.

    Parameters
    ----------
    inside : ndarray of bool, (N,)
        A box with a frame of one voxel outside, flat.
    steps : ndarray of int64
        From a voxel to those of its neighbours that come before it.

    Returns
    -------
    labels : ndarray of int32, (N,)
    sizes : ndarray of int64, (components + 1,)
        Voxels; 0 for label 0.
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
            # The root comes first, and whatever lies between is numbered already.
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
    """Add voxels from the highest score down and join them to their neighbours; tell what changes, level by level.

    Parameters
    ----------
    values : ndarray of float32, (N,)
        A framed box, flat; -inf in the frame.
    order : ndarray of int32
        The voxels to add, by falling score.
    labels : ndarray of int32, (N,)
        0, or the number of the lesion.
    touches : ndarray of bool, (N,)
        Where a cluster is not false.
    lesion_sizes : ndarray of int64
        Voxels of lesions 1, 2, ...
    steps : ndarray of int64
        From a voxel to its neighbours.
    smallest : int
        Voxels of the smallest cluster.

    Returns
    -------
    thresholds, clusters, false_clusters : ndarray
        A row whenever the numbers change: they hold from this threshold down to just above the next.
    found : ndarray of float32
        The highest threshold at which a cluster touches each lesion; -inf if none does.
    row_from, row_until : ndarray of float32
        A pair of a cluster and a lesion has an IoU of `row_step` hundredths, `SMALLEST_IOU_STEP` at least, at
        thresholds t with ``row_until < t <= row_from``.
    row_cluster, row_lesion, row_step : ndarray of int32
        The lesion counted from 0.
    """
    parent = np.full(len(values), -1, dtype=np.int32)
    size = np.zeros(len(values), dtype=np.int32)
    # The voxels of a tree in a ring, so that they can be listed once, when the tree becomes a cluster.
    following = np.zeros(len(values), dtype=np.int32)
    on_lesion = touches.copy()
    found = np.full(len(lesion_sizes), -np.inf, dtype=np.float32)
    # The lesions that a tree overlaps, in a list: how many of their voxels it holds, and the row last told of the pair.
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
    # A cluster this many times as large as a lesion has outgrown it: their IoU never comes up to the limit again.
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
