"""From patches to an anomaly map: the encoder, its guidance by a one-class SVM, one detector per location; and the
readers whose calibrated scores make the map.

Read `encoder`, `dual`, `guidance_loss`, `training`, `detector` in this order to follow the method
(Pinon, Trombetta, Lartizien, arXiv 2507.21164); `features`, `scorers`, `calibration`, `readers`, `fusion`, `fitting` to
follow how a map comes about.
"""
