"""The columns of a manifest: one row is one utterance."""

import pyarrow as pa

# Labels and votes stay raw: policies (exc → hap, which classes) apply at training time.
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        # Path under the corpus root, with forward slashes; null if the corpus was imported.
        ("audio", pa.string()),
        # Of a segment, that of the file and its span (`segments.segment_digest`).
        ("audio_sha256", pa.string()),
        # Null where there is no transcript.
        ("text", pa.string()),
        ("text_sha256", pa.string()),
        ("session", pa.string()),
        ("dialogue", pa.string()),
        # Rank within the dialogue.
        ("turn", pa.int32()),
        ("speaker", pa.string()),
        # F, M or null.
        ("gender", pa.string()),
        # Seconds within the dialogue; of segments, within the audio file.
        ("start", pa.float64()),
        ("end", pa.float64()),
        # Seconds of audio.
        ("duration", pa.float64()),
        # Raw consensus; null where unlabelled.
        ("label", pa.string()),
        # Raw categories, one list per external rater.
        ("votes", pa.list_(pa.list_(pa.string()))),
        ("valence", pa.float64()),
        ("arousal", pa.float64()),
        ("dominance", pa.float64()),
    ]
)

# Columns that name something within one corpus alone.
OF_ITS_CORPUS = ("id", "session", "dialogue", "speaker")
