"""Results that anyone can run again: the recipes of all benchmarks, with their seeds, into `results/`.

    python -m hf_seqmodels.results [--task music ...]        (all of it: make results)

`evaluation/benchmarks.py` says what is run, `plan.py` which runs that means here and now, `runner.py` runs them, and
`evaluation/result_tables.py` writes the tables.
"""
