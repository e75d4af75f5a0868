"""The trainer: BFPO and the methods it is compared with; it meets the benchmark at a checkpoint folder only."""
