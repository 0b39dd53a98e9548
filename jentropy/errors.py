"""Every error jentropy raises on purpose.

Bad input is an `InputError`: the command line prints it as one line and exits with code 2.
Its message always says where (file, tensor), what was expected, what was found and, where the
user can do something, what. A failed check of data that could be read is a `CheckError`: exit
code 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any


def shown(text: str) -> str:
    """A text as it may be printed: whatever would move a cursor, or is no character, escaped.

    Args:
      text: with names of files and tensors, which may hold anything.

    Returns:
      Printable characters.

    Example:
      >>> print(shown("a\\x1b[2Jb"))
      a\\x1b[2Jb
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


NAME = 300  # characters of a tensor's name that are printed, its quotes among them
SHOWN, WHAT = 300, 1000  # of what was expected, was found, or can be done; of what is wrong
ANNEX = " ["  # begins what TensorStore's messages tell of its own doings


def said(error: BaseException) -> str:
    """A line of what an error of somebody else's says.

    Args:
      error: any.

    Returns:
      At most 200 characters.

    Example:
      >>> said(FileNotFoundError(2, "No such file")), said(ValueError("a\\nb"))
      ('No such file', 'a')
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"{first.split(ANNEX)[0]:.200}"


def place(file: object) -> object:
    """What messages call a file: its URL, if it stands for what lies behind one.

    Args:
      file: a path.

    Returns:
      Something to print.

    Example:
      >>> place("model.safetensors")
      'model.safetensors'
    """
    return getattr(file, "url", file)


class JentropyError(Exception):
    """Base of every error that jentropy raises on purpose.

    Example:
      >>> import jentropy
      >>> try:
      ...     jentropy.open_checkpoint("nowhere")
      ... except JentropyError as error:
      ...     print(error)
      nowhere: no such file or directory
    """


class InputError(JentropyError):
    """The input cannot be used.

    Args:
      what: what is wrong, in a few words.
      file: the file that it is wrong in.
      tensor: the tensor's name or path in the tree.
      expected: what a valid input has there.
      found: what this one has.
      hint: what the user can do.
      others: what else was found, where all is looked for.

    Example:
      >>> error = InputError("dtype", expected="bfloat16", found="int64", hint="see --dtype")
      >>> print(error.at(file="model.safetensors", tensor="w"))
      model.safetensors: tensor 'w': dtype: expected bfloat16, found int64 (see --dtype)
    """

    def __init__(
        self,
        what: str,
        *,
        file: object = None,
        tensor: str | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
        others: tuple[InputError, ...] = (),
    ) -> None:
        self.what, self.file, self.tensor = what, file, tensor
        self.expected, self.found, self.hint = expected, found, hint
        self.others = others
        told = [f"{one!s:.{SHOWN}}" for one in (expected, found, hint)]
        parts = (
            "" if file is None else f"{place(file)}: ",
            "" if tensor is None else f"tensor {tensor!r:.{NAME}}: ",
            what[:WHAT],
            "" if expected is None else f": expected {told[0]}, found {told[1]}",
            "" if hint is None else f" ({told[2]})",
            f"; and {len(others)} more" if others else "",
        )
        super().__init__(shown("".join(parts).replace("\n", " ")))

    def _keywords(self) -> dict[str, Any]:
        keys = ("file", "tensor", "expected", "found", "hint", "others")
        return {key: getattr(self, key) for key in keys}

    def at(self, *, file: object = None, tensor: str | None = None) -> InputError:
        """The same error with the place that it lacks.

        Args:
          file: the file, if the error names none.
          tensor: the tensor, if the error names none.

        Returns:
          An error of the same class.
        """
        place: dict[str, Any] = {"file": file, "tensor": tensor}
        told = {key: value for key, value in self._keywords().items() if value is not None}
        return type(self)(self.what, **(place | told))

    def among(self, others: Iterable[InputError]) -> InputError:
        """The same error as the first of several.

        Args:
          others: the rest.

        Returns:
          An error of the same class, that has the others.

        Example:
          >>> print(InputError("a", file="f").among([InputError("b"), InputError("c")]))
          f: a; and 2 more
        """
        return type(self)(self.what, **(self._keywords() | {"others": tuple(others)}))

    def __reduce__(self):
        return partial(type(self), self.what, **self._keywords()), ()


class TruncatedError(InputError):
    """A file ends before its own header says it does."""


class CorruptError(InputError):
    """Stored data contradicts itself."""


class MissingFileError(InputError):
    """A checkpoint lacks a file that the rest of it points to."""


class ChecksumError(CorruptError):
    """Stored data does not have the checksum that was stored with it."""


class UnsupportedError(InputError):
    """A version, codec, dtype, architecture or file kind that this release does not know."""


class DestinationError(InputError):
    """The destination exists, or cannot be written."""


class CheckError(JentropyError):
    """A comparison that was asked for did not hold."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while something was being written: what is left of it, and how to go on."""
