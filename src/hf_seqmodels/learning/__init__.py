"""Does every system learn what it should be able to learn? Synthetic tasks with known chance levels and fixed seeds.

    python -m hf_seqmodels.learning [--only parity ...]        (all of it: make smoke-learning)

`checks.py` says what is run and what is promised, `suite.py` runs it, `report.py` writes it down.
"""
