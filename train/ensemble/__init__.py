"""Ensembles: a run of its own from the predictions of trained runs, its members.

`make.py` writes it, from what `members.py` reads and checks; `combination.py` says how predictions
become one, with weights that `weights.py` or `stacking.py` fit on the dev part.
"""
