"""Negative log-likelihood per time step from summed losses, the same for any batching."""

import math

import datasets
import evaluate

_DESCRIPTION = "Negative log-likelihood in nats per predicted step, summed over the values of a step (piano keys)."
_INPUTS = """
predictions: summed negative log-likelihood in nats, one number per batch or piece
references: how many predicted steps each sum covers (a piece of T steps has T - 1)
"""


class NllPerStep(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        if sum(references) == 0 or min(references) < 0:
            raise ValueError(f"step counts {references[:5]} must be ≥ 0, and one above 0; check the pieces")
        return {"nll": math.fsum(predictions) / sum(references)}
