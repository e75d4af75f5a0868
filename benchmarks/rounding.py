"""What of a training's change would be lost if its checkpoint were rounded to bfloat16, weight by weight.

    python benchmarks/rounding.py BASE CHECKPOINT

BASE and CHECKPOINT are folders with the same weights' names; BASE may be the name of the embedded model. Of the weights
that training changed, `kept` is the share that differs from the base after both are rounded to bfloat16, and `in step`
the part of the whole change, as the length of the vector of all changes, that rounding leaves along its own direction.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from bfpo_bench.errors import BenchError
from bfpo_bench.sources import EMBEDDED, materialise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("checkpoint", type=Path)
    arguments = parser.parse_args()
    try:
        base = materialise(arguments.base) if arguments.base in EMBEDDED else Path(arguments.base)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    total = changed = kept = 0
    along = length = 0.0
    for before, after in weights(base, arguments.checkpoint):
        change = after - before
        rounded = after.bfloat16().float() - before.bfloat16().float()
        total += change.numel()
        changed += int((change != 0).sum())
        kept += int(((change != 0) & (rounded != 0)).sum())
        along += float((change.double() * rounded.double()).sum())
        length += float(change.double().square().sum())
    print(f"{total:,} weights, {changed:,} changed by training; root mean square {math.sqrt(length / changed):.2g}")
    print(f"kept {100 * kept / changed:.1f} % of the changed; in step {100 * along / length:.1f} % of the change")
    return 0


def weights(base: Path, checkpoint: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each weight that both folders have, in float32."""
    with (
        safe_open(base / "model.safetensors", "pt") as before,
        safe_open(checkpoint / "model.safetensors", "pt") as after,
    ):
        for name in sorted(set(before.keys()) & set(after.keys())):
            yield before.get_tensor(name).float(), after.get_tensor(name).float()


if __name__ == "__main__":
    sys.exit(main())
