"""Intervals for estimates, by resampling whole images."""

from .bootstrap import LEVEL, Estimate, bootstrap_mean, bootstrap_pairs, resampling_weights

__all__ = ["LEVEL", "Estimate", "bootstrap_mean", "bootstrap_pairs", "resampling_weights"]
