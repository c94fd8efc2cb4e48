"""Weights from elsewhere: torch.nn, Keras and transformers' models into ours, each checked on random input.

Every `from_…` function returns `(model, report)`, or raises a ValueError that names the first tensor or option that
does not fit. `hf-seqmodels import` is the same from the command line.
"""
