"""Brain extraction with networks, a program of the site, or a template-based fallback."""
