"""Mean squared error."""

import datasets
import evaluate
from sklearn.metrics import mean_squared_error


class MeanSquaredError(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="Mean over the rows of the squared difference of prediction and truth.",
            citation="",
            inputs_description="predictions, references: numbers, one per row",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions, references):
        return {"mse": float(mean_squared_error(references, predictions))}
