"""Example files: a manifest and a configuration."""
