"""Share of tokens whose predicted class is the label; label -100 (padding, first token) is left out."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score


class TokenAccuracy(evaluate.Metric):
    def _info(self):
        rows = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description="Share of tokens whose predicted class is the label; label -100 is left out.",
            citation="",
            inputs_description="predictions, references: class ids, one list per row, equally long; -100 is no label",
            features=datasets.Features({"predictions": rows, "references": rows}),
        )

    def _compute(self, predictions, references):
        if [len(row) for row in predictions] != [len(row) for row in references]:
            raise ValueError("some row of predictions and references differs in length: each token needs both")
        labels = np.array([label for row in references for label in row])
        classes = np.array([label for row in predictions for label in row])
        counted = labels != -100
        if not counted.any():
            raise ValueError("no label other than -100: accuracy needs at least one; check the labels")
        return {"token_accuracy": float(accuracy_score(labels[counted], classes[counted]))}
