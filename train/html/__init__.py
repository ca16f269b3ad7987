"""The report as one HTML file, and its tables as Markdown, LaTeX and CSV."""
