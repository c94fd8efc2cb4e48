"""Scores: yardsticks and models, measured in the same unit over the same targets."""
