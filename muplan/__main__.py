"""``python -m muplan``."""

from muplan.cli.main import main

main()
