"""The page that a report is written on: HTML, its style and its script."""
