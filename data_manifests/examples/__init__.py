"""Examples of what a lab writes: a manifest and a configuration."""
