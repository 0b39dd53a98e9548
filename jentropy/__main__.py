"""`python -m jentropy`: the command line."""

import sys

from jentropy.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
