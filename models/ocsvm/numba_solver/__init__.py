"""One-class SVM on the CPU, compiled with numba: one location after the other, without Python in between.

Dual problem (Schölkopf et al., Neural Computation 2001; scaled as in LIBSVM): minimise ``1/2 a'Ka`` subject to ``sum(a)
= total`` and ``0 <= a_i <= w_i``, with ``total = nu*sum(w)`` and the weights w, in a unit of the size of the
largest (`workspace.set_bounds`). As the sum of ``a`` is fixed, a constant may be subtracted from
the kernel: `rows` hold ``K - 1 = expm1(-gamma*|z_i - z_j|^2)``, whose diagonal is 0 and which keeps full relative
precision when the kernel is nearly flat. At the optimum, the gradient ``g = (K - 1)a`` is lowest where ``a`` is w and
highest where it is 0. The KKT gap measures the violation: maximum of g over a > 0 minus minimum of g over a < w.

The solver has two stages, joined in `solve`: SMO (`smo`) finds the approximate active set, Newton steps on the free set
(`active_set`) reach machine precision. `loss` adds the gradient of the guidance loss, `detectors` the loops over
voxels.

Latents are transposed: points (d, width), with one subject per column, so that loops over subjects access contiguous
memory and vectorise. `width` is the number of subjects rounded up to a multiple of the vector length.
"""
