"""The checks of an audit by name, those of installed packages too."""

from collections.abc import Callable

from ser.plugins import Registry

from .checks.baselines import check_baselines
from .checks.claims import check_claims
from .checks.classes import check_classes
from .checks.coverage import check_coverage
from .checks.difference import check_difference
from .checks.folds import check_folds
from .checks.same_audio import check_same_audio
from .checks.same_dialogue import check_same_dialogue
from .checks.same_speaker import check_same_speaker
from .checks.same_text import check_same_text
from .checks.same_utterance import check_same_utterance
from .checks.scripts import check_scripts
from .checks.seeds import check_seeds
from .checks.selection import check_selection
from .checks.truth import check_truth
from .evidence import Evidence
from .finding import Finding

# From the evidence to what it shows. Raises `NotChecked` where that is not enough.
Check = Callable[[Evidence], list[Finding]]

# In the order of the page.
_SER: dict[str, Check] = {
    "same utterance": check_same_utterance,
    "same speaker": check_same_speaker,
    "same dialogue": check_same_dialogue,
    "same audio": check_same_audio,
    "same transcript": check_same_text,
    "folds": check_folds,
    "coverage": check_coverage,
    "truth": check_truth,
    "classes": check_classes,
    "claim": check_claims,
    "selection": check_selection,
    "baselines": check_baselines,
    "difference": check_difference,
    "seeds": check_seeds,
    "script": check_scripts,
}
CHECKS: Registry[Check] = Registry("check", "ser.audits", Callable, _SER)
