"""Other methods of anomaly detection, to be compared with voxout on the same scans and in the same surroundings."""
