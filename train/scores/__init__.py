"""Every score, interval and test is computed here, and nowhere else.

    classes      confusion matrices, WA, UA, F1
    ratings      CCC and RMSE of valence, arousal and dominance
    raters       what the raters themselves score, and how far a model is from their votes
    calibration  reliability, temperature, conformal sets
    measures     a metric by its name
    pooling      one score of many runs, and its spreads
    groups       which predictions are not independent, and their counts
    intervals    95 % intervals over groups
    tests        whether two cells differ
    errors       shares of wrong predictions, and the hardest utterances
    curves       a value of each epoch over several runs

`python -m benchmarks.statistics` simulates how often the intervals hold the truth, and how often
the tests find what is not there. Axis letters:

    R  runs     S  seeds     K  classes     g  groups     n  utterances or predictions
    D  dimensions: valence, arousal and dominance
"""
