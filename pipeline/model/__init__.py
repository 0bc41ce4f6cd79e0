"""A fitted model on disk and in memory: its files, and the way from a scan to its anomaly map."""
