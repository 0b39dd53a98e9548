"""Reports as pictures: PNG figures and a self-contained HTML page, from report data."""

from . import figures
from .html import write_html
from .png import write_png
from .speeds import write_speeds

__all__ = ["figures", "write_html", "write_png", "write_speeds"]
