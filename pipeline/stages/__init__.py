"""The stages, from scans to report."""
