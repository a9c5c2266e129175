"""`python -m interp.conformance MODEL` is `interp conformance MODEL`."""

import sys

from interp.cli.main import main

main(["conformance", *sys.argv[1:]])
