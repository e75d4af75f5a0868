"""`python -m bfpo_bench.trainers ARGS` is `python -m bfpo_bench train ARGS`: the module that a launcher starts.

It knows nothing but that command.
"""

from __future__ import annotations

import sys

from bfpo_bench.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
