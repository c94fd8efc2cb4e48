"""Bits per token and perplexity from summed token losses, the same for any batching."""

import math

import datasets
import evaluate

_DESCRIPTION = "Bits per token (for character models: bits per character) and perplexity over all predicted tokens."
_INPUTS = """
predictions: summed negative log-likelihood in nats, one number per batch or sequence
references: how many tokens each sum covers (labels other than -100)
"""


class BitsPerToken(evaluate.Metric):
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
            raise ValueError(f"token counts {references[:5]} must be ≥ 0, and one above 0; check the labels")
        nats = math.fsum(predictions) / sum(references)
        # exp overflows near 709 nats, which no model that learns comes close to
        return {"bits_per_token": nats / math.log(2), "perplexity": math.exp(nats) if nats < 700 else math.inf}
