"""What names the utterances of an exported table: ids, and of segments their place in a file."""

from collections.abc import Sequence
from typing import Any

from ser.corpus.manifest import Manifest
from ser.corpus.segments import has_segments, places_of


def index_of_table(manifest: Manifest) -> dict[str, Sequence[Any]]:
    """The columns before the values: the id; of segments before it file, start and end in seconds.

    An end that is not known is that of the file, and empty.
    """
    if not has_segments(manifest):
        return {"id": manifest.ids}
    places = places_of(manifest)
    return {
        "file": manifest.column("audio"),
        "start": [start for start, _ in places],
        "end": [end for _, end in places],
        "id": manifest.ids,
    }


def audformat_index(manifest: Manifest) -> dict[str, Sequence[Any]]:
    """The columns of audformat's index: file, and of segments start and end, as pandas writes them.

    An end that the corpus does not say stays NaT: so it joins the tables that the corpus came from.
    """
    files = manifest.column("audio")
    if not has_segments(manifest):
        return {"file": files}
    import pandas as pd

    starts = [0.0 if start is None else start for start in manifest.column("start")]
    return {
        "file": files,
        "start": pd.to_timedelta(starts, unit="s").astype(str),
        "end": pd.to_timedelta(manifest.column("end"), unit="s").astype(str),
    }
