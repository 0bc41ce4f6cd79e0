"""From patches to an anomaly map: the encoder, its guidance by a one-class SVM, one detector per location.

Read `encoder`, `ocsvm_dual`, `ocsvm_loss`, `training`, `detector` in this order to follow the method
(Pinon, Trombetta, Lartizien, arXiv 2507.21164).
"""
