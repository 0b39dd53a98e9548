"""Reports as a self-contained HTML page, PNG figures and CSV, from report data."""

from . import figures
from .channels import write_channels
from .page import write_html
from .png import write_png
from .rate_distortion import write_rate_distortion
from .speeds import write_speeds
from .tensors_csv import write_csv

__all__ = [
    "figures",
    "write_channels",
    "write_csv",
    "write_html",
    "write_png",
    "write_rate_distortion",
    "write_speeds",
]
