"""The columns of a manifest: one row is one utterance."""

import pyarrow as pa

# Labels and votes stay raw: policies (exc → hap, which classes) apply at training time.
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("audio", pa.string()),  # path under the corpus root, forward slashes; null if imported
        ("audio_sha256", pa.string()),
        ("text", pa.string()),  # null where there is no transcript
        ("text_sha256", pa.string()),
        ("session", pa.string()),
        ("dialogue", pa.string()),
        ("turn", pa.int32()),  # rank within the dialogue
        ("speaker", pa.string()),
        ("gender", pa.string()),  # F, M or null
        ("start", pa.float64()),  # seconds within the dialogue
        ("end", pa.float64()),
        ("duration", pa.float64()),  # seconds of audio
        ("label", pa.string()),  # raw consensus; null where unlabelled
        ("votes", pa.list_(pa.list_(pa.string()))),  # raw categories, one list per external rater
        ("valence", pa.float64()),
        ("arousal", pa.float64()),
        ("dominance", pa.float64()),
    ]
)

# Columns that name something within one corpus alone.
OF_ITS_CORPUS = ("id", "session", "dialogue", "speaker")
