"""Patch encoder, voxel-wise one-class SVMs, and calibrated anomaly scorers.

The method (Pinon, Trombetta, Lartizien, arXiv 2507.21164) is in `encoder.network`, `ocsvm.dual`, `ocsvm.guidance_loss`,
`encoder.training` and `ocsvm.voxelwise`. The anomaly map is computed in `features.extractors`, `anomaly.scorers`,
`anomaly.calibration`, `anomaly.calibrated_scorer`, `anomaly.ensemble` and `anomaly.fit`.
"""
