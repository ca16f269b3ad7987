"""Whether a result is what it says it is: files of any toolkit, checked for the field's faults.

reading/     what a path holds: predictions, a split, a history, a run, a corpus
evidence.py  what all of them say together
checks/      one file per kind of check: `(Evidence) -> list[Finding]`
registry.py  the checks by name, those of installed packages too
audit.py     gathers the evidence, runs the checks, gives the verdict
in_words.py  the answer on a terminal and as JSON
page.py      the answer as a page for a reviewer
"""
