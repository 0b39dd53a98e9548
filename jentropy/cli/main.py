"""`jentropy COMMAND`: finds the command, runs it, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 a check failed, 2 bad input or a bad command line.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jentropy
from jentropy.codecs import threads
from jentropy.errors import CheckError, JentropyError, shown

from .arguments import JOBS, QUIET

COMMANDS = (
    "demo",
    "analyze",
    "compress",
    "decompress",
    "verify",
    "salvage",
    "inspect",
    "generate",
    "evaluate",
    "quantize",
    "bench",
)
PRINT_ONLY = ("demo", "bench")  # what they measure, and that is all they do
CHECK_FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
DEBUG = "JENTROPY_DEBUG"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 1 << 28
MOST_JOBS = 4  # for each core; XLA hangs with millions of threads


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code."""
    try:
        with _terminable():
            return _run(argv)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except CheckError as error:
        return _fail(error, CHECK_FAILED)
    except (JentropyError, OSError) as error:
        return _fail(error, BAD_INPUT)
    except KeyboardInterrupt as error:
        return _fail(str(error) or "interrupted", INTERRUPTED)
    except MemoryError:
        return _fail("out of memory", BAD_INPUT)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        what = f"{type(error).__name__}: {error}"
        return _fail(f"internal error, set {DEBUG}=1 to see where: {what:.300}", BAD_INPUT)


@contextmanager
def _terminable() -> Iterator[None]:
    """Has SIGTERM end a command as Ctrl-C does: what it leaves is removed or named."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _parser(argv: Sequence[str] | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jentropy",
        description="Measure, remove and run without the bits that carry nothing in model weights.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parser.add_argument("--version", action="version", version=f"%(prog)s {jentropy.__version__}")
    words = sys.argv[1:] if argv is None else argv
    # The first is the command: what only others need is not loaded.
    for name in [word for word in words if word in COMMANDS][:1] or COMMANDS:
        module = importlib.import_module(f"jentropy.cli.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        quiet = {} if name in PRINT_ONLY else QUIET
        for flags, options in (module.ARGUMENTS | quiet | JOBS).items():
            command.add_argument(*flags.split(), **options)
        command.set_defaults(run=module.run)
    return parser


def _run(argv: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    arguments = _parser(argv).parse_args(argv)
    if arguments.jobs:
        jobs = min(arguments.jobs, MOST_JOBS * (os.cpu_count() or 1))
        os.environ[threads.JOBS] = str(jobs)
        os.environ.setdefault("NPROC", str(jobs))  # XLA's own threads
    if arguments.command != "bench":  # which measures what whoever imports the library has
        _keep_memory()
    # What libraries say of themselves is not for the user of a command.
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = arguments.run(arguments)
    finally:
        logging.disable(before)
    if sys.stdout is not None:
        sys.stdout.flush()
    return code


def _keep_memory() -> None:
    """Lets the C library keep large blocks that are freed, rather than fault them in again.

    Decoding is a third faster so. It is a matter of the whole process: only the command may do it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return
    for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        mallopt(option, KEPT_BYTES)


def _fail(error: object, code: int) -> int:
    if sys.stderr is not None:
        told = ". ".join([str(error), *getattr(error, "__notes__", [])])
        print("jentropy:", shown(" ".join(told.split())), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
