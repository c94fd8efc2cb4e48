"""F1 per class, averaged over the classes."""

import datasets
import evaluate
from sklearn.metrics import f1_score


class F1(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="F1, the harmonic mean of precision and recall, averaged over classes (macro by default).",
            citation="",
            inputs_description="predictions, references: class ids, one per row; average: macro, micro or weighted",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, average="macro"):
        return {"f1": float(f1_score(references, predictions, average=average, zero_division=0))}
