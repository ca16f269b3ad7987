"""Under which name the ids of different files are compared."""

from collections.abc import Iterable, Sequence

# What a file of one utterance may end in.
ENDINGS = {"wav", "flac", "mp3", "ogg", "m4a", "opus", "aac", "npy", "pt"}


def join_keys(files: Sequence[Iterable[str]], corpora: Iterable[str] = ()) -> dict[str, str]:
    """The key of each id, without the name of one of the `corpora` that EmoBox writes before it.

    It is the name of the file without folders and ending: `Session1/wav/a.wav` of one file and `a`
    of another are one utterance. Where a file has two ids that end alike, such as `1/a.wav` and
    `2/a.wav`, folders count.
    """
    prefixes = tuple(f"{corpus}-" for corpus in corpora)
    paths: dict[str, str] = {}
    folders_count = False
    for ids in files:
        path_of_stem: dict[str, str] = {}
        for id_ in dict.fromkeys(ids):
            path = paths.get(id_)
            if path is None:
                path = without_ending(id_)
                for prefix in prefixes:
                    path = path.removeprefix(prefix)
                paths[id_] = path
            stem = path.rpartition("/")[2] if "/" in path else path
            if path_of_stem.setdefault(stem, path) != path:
                folders_count = True

    if folders_count:
        return paths
    return {id_: path.rpartition("/")[2] for id_, path in paths.items()}


def without_ending(id_: str) -> str:
    """An id with forward slashes, without the ending of an audio file."""
    path = id_
    if "/" in id_ or "\\" in id_:
        path = id_.replace("\\", "/").removeprefix("./")
    stem, _, ending = path.rpartition(".")
    return stem if ending.casefold() in ENDINGS else path
