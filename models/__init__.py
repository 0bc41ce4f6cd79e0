"""From patches to an anomaly map: the encoder, its guidance by a one-class SVM, one detector per location; and the
readers whose calibrated scores make the map.

To follow the method (Pinon, Trombetta, Lartizien, arXiv 2507.21164), read `encoder.network`, `ocsvm.dual`,
`ocsvm.guidance_loss`, `encoder.training` and `ocsvm.voxelwise`; to follow how a map is made, `features.extractors`,
`anomaly.scorers`, `anomaly.calibration`, `anomaly.calibrated_scorer`, `anomaly.ensemble` and `anomaly.fit`.
"""
