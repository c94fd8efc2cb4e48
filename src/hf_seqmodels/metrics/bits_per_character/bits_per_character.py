"""Bits per character from summed token losses, whatever the tokens are."""

import math

import datasets
import evaluate

_INPUTS = """
predictions: summed negative log-likelihood in nats, one number per batch or sequence
references: how many characters of the text each sum covers
"""


class BitsPerCharacter(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="Bits per character of the text, for tokens that say it exactly (bytes, BPE).",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        if sum(references) == 0 or min(references) < 0:
            raise ValueError(f"character counts {references[:5]} must be ≥ 0, and one above 0; check the texts")
        return {"bits_per_character": math.fsum(predictions) / sum(references) / math.log(2)}
