"""A trained run on new speech: the one place that uses extraction and training together.

    answer = predict("runs/3f2a…", ["hello.wav"], text="hello there")
    answer.predictions[0].label, answer.predictions[0].probabilities

The run folder holds the model, its scaling, and for each feature the complete spec that was hashed
when it was extracted. A feature is computed in exactly that way or not at all; only the encoders'
weights are elsewhere, and their digest must be the recorded one.
"""

from .from_files import predict
from .predictor import Predictor
from .several import Predictors, SeveralAnswers
from .turns import Answer, Prediction, Turn

__all__ = [
    "Answer",
    "Prediction",
    "Predictor",
    "Predictors",
    "SeveralAnswers",
    "Turn",
    "predict",
]
