"""What a process of a sweep imports before its workers are forked from it: all that training needs, once for all."""

import sklearn.metrics  # noqa: F401  (the final scores; importing it takes most of a second)

import ser.train.sweep  # noqa: F401
