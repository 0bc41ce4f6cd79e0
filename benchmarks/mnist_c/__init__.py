"""The method's other proving ground: one digit is normal, nine are not, and corruptions shift the domain (MNIST-C).

Read `protocol`, `objectives`, `training`, `read_outs`, `runs` in this order. Brains play no part here: what is shared
with the brain pipeline is the one-class SVM (`models.ocsvm_loss`, `models.detector`) and how figures are made
(`evaluation`).
"""
