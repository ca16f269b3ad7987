"""The utterances that every feature has."""

from collections.abc import Sequence

import numpy as np

from ser.cache.extract_command import extract_rows_command
from ser.cache.feature import Feature
from ser.corpus.manifest import Manifest
from ser.errors import MissingRows

from .utterances import Utterances


def with_rows(
    features: Sequence[Feature], manifest: Manifest, utterances: Utterances, allow_missing: bool
) -> tuple[Utterances, dict[str, dict[str, str]]]:
    """The utterances that every feature has; by feature and id, why others are quarantined in it.

    Raises `MissingRows`, naming the command, for an utterance without the feature, and unless
    `allow_missing` for a quarantined one; also if no other is left.
    """
    quarantined = {}
    for feature in features:
        name = feature.spec.name
        all_reasons = feature.quarantined(manifest)
        reasons = {id_: all_reasons[id_] for id_ in utterances.ids if id_ in all_reasons}
        others_are_left = len(reasons) < len(utterances)
        if reasons and not (allow_missing and others_are_left):
            example, why = next(iter(reasons.items()))
            row = utterances.rows[utterances.ids.index(example)]
            corpus = manifest.keys(feature.spec.modality)[row][0]
            again = extract_rows_command(feature.store, name, manifest, corpus, retry=True)
            way_out = ", or leave them out with --allow-missing" if others_are_left else ""
            raise MissingRows(
                f"{name}: {len(reasons)} labelled utterances are quarantined, such as {example} "
                f"({why}); mend and extract them with {again}{way_out}"
            )

        if reasons:
            quarantined[name] = reasons
            kept = np.flatnonzero([id_ not in reasons for id_ in utterances.ids])
            utterances = utterances.take(kept)
        # Raises for an utterance that the feature lacks.
        feature.places(manifest, utterances.rows.tolist())
    return utterances, quarantined
