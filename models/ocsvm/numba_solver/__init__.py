"""The one-class SVM on the CPU, compiled by numba: one location after the other, no Python in between.

The dual (Schölkopf et al., Neural Computation 2001; scaled as in LIBSVM): minimise ``1/2 a'Ka`` subject to
``sum(a) = total`` and ``0 <= a_i <= 1``, with ``total = nu*m``. As the sum of ``a`` is fixed, any constant may be taken
off the kernel: `rows` hold ``K - 1 = expm1(-gamma*|z_i - z_j|^2)``, whose diagonal is 0 and which keeps its digits
when the kernel is nearly flat. Optimal is an ``a`` whose gradient ``g = (K - 1)a`` is lowest where ``a`` is 1 and
highest where it is 0; the KKT gap measures by how much that fails: max of g over a > 0, less min of g over a < 1.

Two stages find it: `smo` get the active set nearly right, `active_set` on the free set end at machine
precision; `solve` joins them. `loss` adds the gradient of the guidance loss, `detectors` the loops over a brain.

Latents stand across: points (d, width), one subject a column, so that a loop over subjects runs over neighbours in
memory and vectorises. `width` is the number of subjects rounded up to whole vectors.
"""
