"""Azure ML entry script: tells iris species from four measurements, with a scikit-learn classifier.

`init()` runs once in each replica, `run(data)` once per request:

    {"data": [[5.1, 3.5, 1.4, 0.2]]}  ->  {"predictions": ["setosa"]}

The model is trained by the first replica that starts, from a data set that scikit-learn ships, and kept in
`AZUREML_MODEL_DIR` for the others.
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
MOST_ROWS = 10_000

model: Any = None


def init() -> None:
    """Load the model, which must be trained first if nobody has done so yet."""
    global model
    # A stored model is bound to the version of the library that stored it.
    path = Path(os.environ["AZUREML_MODEL_DIR"]) / f"iris-sklearn-{sklearn.__version__}.joblib"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several replicas may start at once: one trains, the others wait for it.
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            train(path)
        model = joblib.load(path)


def train(path: Path) -> None:
    """Train on scikit-learn's iris data, and store the model as a whole or not at all."""
    iris = load_iris()
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(iris.data, iris.target_names[iris.target])
    temporary = path.with_suffix(f".{os.getpid()}")
    joblib.dump(classifier, temporary)
    temporary.replace(path)


def run(data: str) -> Any:
    """Species of each row in the request's body; 400 with a message when it is not as it must be."""
    try:
        rows = parse(data)
    except ValueError as error:
        return AMLResponse({"message": str(error)}, 400, json_str=True)
    return {"predictions": model.predict(rows).tolist()}


def parse(data: str) -> list[list[float]]:
    """The rows in a request's body. Raises ValueError that says what is wrong with it."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("the body must be JSON") from None
    rows = body.get("data") if isinstance(body, dict) else None
    if not isinstance(rows, list) or not 1 <= len(rows) <= MOST_ROWS:
        raise ValueError(f'the body must be {{"data": [ROW, ...]}} with 1 to {MOST_ROWS} rows')
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(FEATURES) or not all(map(is_number, row)):
            raise ValueError(f"row {number} must be {len(FEATURES)} numbers: {', '.join(FEATURES)} in cm")
    return rows


def is_number(value: object) -> bool:
    """Whether it is a number that the model can compute with; true and NaN are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e9 and math.isfinite(value)
