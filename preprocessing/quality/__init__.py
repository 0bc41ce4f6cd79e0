"""Quality control of a prepared subject."""
