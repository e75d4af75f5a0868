"""torch's attention on a CPU in bfloat16 and in float32: why trainers/attention.py computes it in float32 there.

    python benchmarks/attention_precision.py [--repeats 30]

scaled_dot_product_attention with 9 query and 3 key heads of width 64 (SmolLM2-135M's), forward and backward, over the
shapes of a packed pair: causal over prompt and answer, and a masked answer that sees its prompt. Fastest of the repeats
in milliseconds, the variants in turn. `cast` takes bfloat16 to float32 and back inside the clock, as the trainer does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

Attention = Callable[..., torch.Tensor]
# (queries, keys): equal is causal, else the last queries see all keys before them.
SHAPES = ((100, 100), (250, 250), (512, 512), (80, 250), (130, 512))


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    n_queries, n_keys = query.shape[2], key.shape[2]
    if n_queries == n_keys:
        return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    mask = torch.ones(n_queries, n_keys, dtype=torch.bool).tril(n_keys - n_queries)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)


def cast(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return attend(query.float(), key.float(), value.float()).to(query.dtype)


def milliseconds(attention: Attention, inputs: list[torch.Tensor]) -> float:
    for one in inputs:
        one.grad = None
    began = time.perf_counter()
    found = attention(*inputs)
    found.backward(torch.ones_like(found))
    return 1e3 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'queries':>7} {'keys':>5} {'bfloat16':>9} {'cast':>7} {'float32':>8} {'bfloat16 / cast':>16}")
    for n_queries, n_keys in SHAPES:
        shapes = [(1, heads, n, 64) for heads, n in ((9, n_queries), (3, n_keys), (3, n_keys))]
        wide = [torch.randn(shape, requires_grad=True) for shape in shapes]
        narrow = [one.detach().bfloat16().requires_grad_() for one in wide]
        variants = ((attend, narrow), (cast, narrow), (attend, wide))
        rounds = [[milliseconds(*variant) for variant in variants] for _ in range(arguments.repeats)]
        low, through, high = (min(each) for each in zip(*rounds, strict=True))
        print(f"{n_queries:7} {n_keys:5} {low:9.2f} {through:7.2f} {high:8.2f} {low / through:16.2f}")


if __name__ == "__main__":
    main()
