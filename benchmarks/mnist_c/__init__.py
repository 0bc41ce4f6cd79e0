"""Benchmark on handwritten digits: one digit is normal, nine are anomalous, corruptions shift the domain (MNIST-C).

Read `protocol`, `objectives`, `training`, `read_outs` and `runs` in this order. The benchmark shares the one-class SVM
(`models.ocsvm`) and the metrics (`evaluation`) with the brain pipeline.
"""
