"""Models, one family a folder."""
