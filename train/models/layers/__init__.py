"""Layers on packed rows, of which the papers' models are built.

Linear maps and norms never see where an utterance ends. What does see it stands here.

Axis letters of all models (`[r, d]` is a shape):

    n  utterances of a batch
    m  dialogues
    K  classes
    r  rows: frames or tokens of all utterances
    d  width
    h  heads
    t  places in the padded form
"""
