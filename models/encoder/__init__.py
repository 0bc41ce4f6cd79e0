"""The patch encoder: network, training, and dense inference over a brain."""
