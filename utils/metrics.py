"""The figures of an evaluation (scikit-learn), as a dictionary and as a table."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    precision_recall_fscore_support,
)
from torch import Tensor

CLASSES_SHOWN = 20  # of more, a table by class and a confusion matrix fit no screen


def compute_metrics(logits: Tensor, labels: Tensor, class_names: list[str]) -> dict[str, Any]:
    """Logits (samples, classes) and labels (samples,) to top-1 accuracy in percent, loss, and figures by class.

    Precision, recall, F1 and mean average precision are shares from 0 to 1, 0 where undefined; the confusion matrix has
    true classes as rows.
    """
    predictions = logits.argmax(dim=1)
    truth, guess = labels.numpy(), predictions.numpy()
    classes = np.arange(len(class_names))
    by_class = precision_recall_fscore_support(truth, guess, labels=classes, zero_division=0)
    names = ("precision", "recall", "f1")
    metrics: dict[str, Any] = {
        "acc1": 100 * float(accuracy_score(truth, guess)),
        "correct": int((predictions == labels).sum()),
        "samples": len(labels),
        "loss": F.cross_entropy(logits.float(), labels).item(),
        "per_class": {
            name: {
                **{figure: float(by_class[i][number]) for i, figure in enumerate(names)},
                "samples": int(by_class[3][number]),
            }
            for number, name in enumerate(class_names)
        },
        "confusion_matrix": confusion_matrix(truth, guess, labels=classes).tolist(),
        "mean_average_precision": mean_average_precision(logits.double().softmax(dim=1).numpy(), truth),
    }
    for average in ("macro", "weighted"):
        means = precision_recall_fscore_support(truth, guess, labels=classes, average=average, zero_division=0)
        metrics[average] = {figure: float(means[i]) for i, figure in enumerate(names)}
    return metrics


def mean_average_precision(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes that occur of the area under precision and recall, each class against the others."""
    found = np.unique(labels)
    return float(np.mean([average_precision_score(labels == one, probabilities[:, one]) for one in found]))


def format_metrics(metrics: dict[str, Any]) -> str:
    """The metrics as a table of text; of many classes the means alone."""
    few = len(metrics["per_class"]) <= CLASSES_SHOWN
    lines = [f"{'class' if few else '':<14}{'precision':>10}{'recall':>10}{'F1':>10}{'samples':>10}"]
    for name, row in metrics["per_class"].items() if few else ():
        lines.append(f"{name:<14}{row['precision']:>10.4f}{row['recall']:>10.4f}{row['f1']:>10.4f}{row['samples']:>10}")
    for average in ("macro", "weighted"):
        row = metrics[average]
        lines.append(f"{average:<14}{row['precision']:>10.4f}{row['recall']:>10.4f}{row['f1']:>10.4f}")
    if few:
        lines.append("confusion matrix (rows: true class, columns: predicted, in the order above)")
        width = len(str(torch.tensor(metrics["confusion_matrix"]).max().item())) + 2
        lines += ["".join(f"{count:>{width}}" for count in row) for row in metrics["confusion_matrix"]]
    lines.append(
        f"top-1 {metrics['acc1']:.2f} % ({metrics['correct']} of {metrics['samples']}), loss {metrics['loss']:.4f}, "
        f"mean average precision {metrics['mean_average_precision']:.4f}"
    )
    return "\n".join(lines)
