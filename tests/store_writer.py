"""A writer to be killed: publishes the parts of a small feature, one after the other, until all are there.

    python tests/store_writer.py STORE BACKEND [PART_ROWS] [pause]

Prints the name of each part once it has been published. Exits 3 with one sentence if the store says that it failed.
"""

import sys
import time

from ser.cache.store import open_store
from ser.errors import SerError
from ser.tests.store_samples import manifest_of, publish_missing, spec_of, values_of

COUNT = 24


def main(path: str, backend: str, per_part: int = 2, pause: float = 0.0) -> None:
    """Publish what is missing."""
    store = open_store(path, create=True)
    manifest = manifest_of(COUNT)
    store.put_manifest(manifest)
    feature = store.add(spec_of("token", dim=16))
    for name in publish_missing(feature, manifest, values_of(manifest, feature.spec), backend, per_part):
        print(name, flush=True)
        time.sleep(pause)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:3], *(float(value) if "." in value else int(value) for value in sys.argv[3:]))  # type: ignore[arg-type]
    except SerError as error:
        print(error, file=sys.stderr)
        raise SystemExit(3) from error
