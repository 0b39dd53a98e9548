"""`jentropy COMMAND`: finds the command, runs it, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 a check failed, 2 bad input or a bad command line.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from jentropy.errors import CheckError, InputError, JentropyError

COMMANDS = (
    "demo",
    "analyze",
    "compress",
    "decompress",
    "verify",
    "inspect",
    "generate",
    "bench",
)
CHECK_FAILED, BAD_INPUT = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="jentropy",
        description="Measure, remove and run without the bits that carry nothing in model weights.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"jentropy.cli.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    # What libraries say of themselves is not for the user of a command.
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
        return arguments.run(arguments)
    except CheckError as error:
        return _fail(error, CHECK_FAILED)
    except InputError as error:
        return _fail(error, BAD_INPUT)
    except JentropyError as error:
        return _fail(error, BAD_INPUT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(error, BAD_INPUT)
    except MemoryError:
        return _fail("out of memory", BAD_INPUT)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(error: object, code: int) -> int:
    line = " ".join(str(error).split())
    print(f"jentropy: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
