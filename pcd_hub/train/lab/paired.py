"""Paired comparison of scores at the same training seeds."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["one seed, not judged", "within noise", "higher", "lower"]

RULE = (
    "within noise: the 95 % interval of the mean paired difference, mean ± t s / √n with Student's "
    "t for n - 1 degrees of freedom, includes 0. Differences of one seed are not judged."
)

_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""97.5 % quantile of Student's t for 1 to 30 degrees of freedom (NIST/SEMATECH e-Handbook of
Statistical Methods, 1.3.6.7.2)."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference from a baseline, over the seeds that both have."""

    seeds: tuple[int, ...]
    mean: float
    std: float | None
    """Sample standard deviation of the paired differences; None for one seed."""
    half_width: float | None
    """Half of the 95 % interval of the mean; None for one seed."""

    @property
    def verdict(self) -> Verdict:
        """Whether the difference exceeds the noise; see :data:`RULE`."""
        if self.half_width is None:
            return "one seed, not judged"
        if abs(self.mean) <= self.half_width:
            return "within noise"
        return "higher" if self.mean > 0 else "lower"


def paired_difference(row: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Return the mean difference of a row from the baseline; None without a common seed.

    Args:
        row: Score by training seed.
        baseline: Score of the baseline by training seed.
    """
    seeds = tuple(sorted(row.keys() & baseline.keys()))
    if not seeds:
        return None
    differences = [row[seed] - baseline[seed] for seed in seeds]
    std = statistics.stdev(differences) if len(seeds) > 1 else None
    return Difference(
        seeds=seeds,
        mean=statistics.fmean(differences),
        std=std,
        half_width=None if std is None else t_975(len(seeds) - 1) * std / math.sqrt(len(seeds)),
    )


def t_975(degrees_of_freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t; beyond 30 degrees that of 30, which is larger."""
    return _T_975[min(degrees_of_freedom, len(_T_975)) - 1]
