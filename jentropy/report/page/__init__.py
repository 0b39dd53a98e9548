"""A report as one HTML file that needs nothing else: drawn in SVG, with a small script."""

from .page import write_html

__all__ = ["write_html"]
