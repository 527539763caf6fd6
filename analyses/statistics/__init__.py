"""Intervals over whole images, paired tests, and verdicts that less data never makes surer."""

from .agrees_or_differs import Evidence, Interval, Region, Verdict, evidence, evidence_of_many, holm
from .bootstrap import bootstrap_mean, bootstrap_pairs, resampling_weights
from .estimate import LEVEL, MIN_IMAGES, Estimate
from .paired_test import paired_test, paired_test_of_many
from .proportions import paired_difference, proportion

__all__ = [
    "LEVEL",
    "MIN_IMAGES",
    "Estimate",
    "Evidence",
    "Interval",
    "Region",
    "Verdict",
    "bootstrap_mean",
    "bootstrap_pairs",
    "evidence",
    "evidence_of_many",
    "holm",
    "paired_difference",
    "paired_test",
    "paired_test_of_many",
    "proportion",
    "resampling_weights",
]
