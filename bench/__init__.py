"""Measurements. Numbers in docs come from here, as ratios within one run."""
