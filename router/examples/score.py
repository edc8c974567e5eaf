"""Azure ML entry script: predicts the species of an iris from four measurements, with a scikit-learn classifier.

`init()` runs once in each replica, `run(data)` once per request:

    {"data": [[5.1, 3.5, 1.4, 0.2]]}  ->  {"predictions": ["setosa"]}

The first replica that starts trains the model on a data set of scikit-learn and stores it in `AZUREML_MODEL_DIR` for
the others.
"""

import fcntl
import json
import math
import os
from pathlib import Path
from typing import Any

import joblib
import sklearn
from azureml_inference_server_http.api.aml_response import AMLResponse
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FEATURES = ("sepal length", "sepal width", "petal length", "petal width")  # in cm
MAX_ROWS = 10_000

model: Any = None


def init() -> None:
    """Load the model. Train it first if no replica has trained it yet."""
    global model
    # A stored model can be loaded only by the library version that stored it.
    path = Path(os.environ["AZUREML_MODEL_DIR"]) / f"iris-sklearn-{sklearn.__version__}.joblib"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several replicas may start at once: one trains, the others wait for it.
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            train(path)
        model = joblib.load(path)


def train(path: Path) -> None:
    """Train on scikit-learn's iris data and store the model atomically."""
    iris = load_iris()
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(iris.data, iris.target_names[iris.target])
    temporary = path.with_suffix(f".{os.getpid()}")
    joblib.dump(classifier, temporary)
    temporary.replace(path)


def run(data: str) -> Any:
    """Return the species of each row in the request body, or 400 with a message if the body is invalid."""
    try:
        rows = parse(data)
    except ValueError as error:
        return AMLResponse({"message": str(error)}, 400, json_str=True)
    return {"predictions": model.predict(rows).tolist()}


def parse(data: str) -> list[list[float]]:
    """Return the rows of a request body. Raises ValueError with the rule that the body breaks."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("the body must be JSON") from None
    rows = body.get("data") if isinstance(body, dict) else None
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_ROWS:
        raise ValueError(f'the body must be {{"data": [ROW, ...]}} with 1 to {MAX_ROWS} rows')
    for index, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(FEATURES) or not all(map(is_number, row)):
            raise ValueError(f"row {index} must be {len(FEATURES)} numbers: {', '.join(FEATURES)} in cm")
    return rows


def is_number(value: object) -> bool:
    """True for a finite number below 1e9; JSON's true and NaN are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e9 and math.isfinite(value)
