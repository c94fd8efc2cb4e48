"""Share of rows in which every label is predicted; label -100 (padding, no target) is left out."""

import datasets
import evaluate
import numpy as np


class ExactMatch(evaluate.Metric):
    def _info(self):
        rows = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description="Share of rows in which every label is predicted; rows without a label are left out.",
            citation="",
            inputs_description="predictions, references: class ids, one list per row, equally long; -100 is no label",
            features=datasets.Features({"predictions": rows, "references": rows}),
        )

    def _compute(self, predictions, references):
        if [len(row) for row in predictions] != [len(row) for row in references]:
            raise ValueError("some row of predictions and references differs in length: each token needs both")
        right = []
        for predicted, labels in zip(map(np.asarray, predictions), map(np.asarray, references), strict=True):
            counted = labels != -100
            if counted.any():
                right.append(bool((predicted == labels)[counted].all()))
        if not right:
            raise ValueError("no label other than -100: exact match needs at least one; check the labels")
        return {"exact_match": float(np.mean(right))}
