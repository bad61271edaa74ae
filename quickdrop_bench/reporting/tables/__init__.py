"""One table shape, filled from rows, and written for a terminal, Markdown, LaTeX and CSV."""
