"""A code is a number of the format's element. Weights of any rank are decoded at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.formats.element import ElementFormat
from jentropy.formats.step import Step

from .decoder import Decoder


def _decode(step: Step, element: ElementFormat, codes: Any, arrays: Mapping[str, Any]) -> Any:
    return element.decode(codes)


ELEMENTWISE = Decoder(decode=_decode)
