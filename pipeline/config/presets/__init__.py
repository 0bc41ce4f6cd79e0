"""Named settings, as YAML: choose one with --preset."""
