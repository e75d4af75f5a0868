"""The constants of the losses, checked as soon as they are stated; loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from bfpo_bench.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The constants of all objectives; each reads its own.

    `tau`, `alpha`, `b1`, `b3` are BFPO's (arXiv:2408.15313); b3 None stands for the paper's 1 / (b1 - 1), at which the
    target of two safe answers is 1 - alpha, whatever b1. `tau` is IPO's too. `beta` is the temperature of DPO, MORL
    and MODPO; `label_smoothing` is DPO's alone; `weight` is that of helpfulness in MORL and MODPO.
    Raises ConfigError for a value outside its range.
    """

    tau: float = 0.01
    alpha: float = 0.5
    b1: float = 3.0
    b3: float | None = None
    beta: float = 0.1
    label_smoothing: float = 0.0
    weight: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            _require(field.name, value, number or (value is None and field.name == "b3"), "a finite number")
        _require("tau", self.tau, self.tau > 0, "a number above 0")
        _require("beta", self.beta, self.beta > 0, "a number above 0")
        _require("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 0.5, "from 0 to below 0.5")
        _require("weight", self.weight, 0 <= self.weight <= 1, "from 0 (safety alone) to 1 (helpfulness alone)")
        if self.b3 is None:
            # Below 1 the derived b3 is negative, and BFPO would prefer unsafe answers.
            _require("b1", self.b1, self.b1 > 1, "above 1, for b3 = 1 / (b1 - 1); or set b3 as well")
        else:
            _require("b1", self.b1, self.b1 > 0, "a number above 0")
            _require("b3", self.b3, self.b3 > 0, "a number above 0")

    @property
    def resolved_b3(self) -> float:
        """b3 as it is used."""
        return 1 / (self.b1 - 1) if self.b3 is None else self.b3


def _require(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ConfigError(f"Loss setting {name}: {value!r}. Expected {expected}.")
