"""Scorer that learns, from synthetic edits of the controls, to tell edited from unedited tissue."""
