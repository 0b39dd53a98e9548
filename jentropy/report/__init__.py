"""Reports as pictures: PNG figures and a self-contained HTML page, from report data."""

from .html import write_html
from .png import write_png

__all__ = ["write_html", "write_png"]
