"""Brain extraction: networks, a site's own program, and a fall-back without a network."""
