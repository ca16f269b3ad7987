"""Under which name the ids of different files are compared."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# What a file of one utterance may end in.
ENDINGS = {"wav", "flac", "mp3", "ogg", "m4a", "opus", "aac", "npy", "pt"}


def join_keys(
    files: Sequence[Iterable[str]],
    corpora: Iterable[str] = (),
    recordings: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The key of each id, without the name of one of the `corpora` that EmoBox writes before it.

    `recordings` are those of `names_of_recordings`, which are keys in place of their ids.

    It is the name of the file without folders and ending: `Session1/wav/a.wav` of one file and `a`
    of another are one utterance. Where a file has two ids that end alike, such as `1/a.wav` and
    `2/a.wav`, folders count.
    """
    prefixes = tuple(f"{corpus}-" for corpus in corpora)
    paths: dict[str, str] = {}
    for ids in files:
        paths.update(dict.fromkeys(ids, ""))
    for id_ in paths:
        # Of most ids this is all, and there may be millions.
        stem, _, ending = id_.rpartition(".")
        paths[id_] = stem if ending in ENDINGS else id_
    for id_, path in paths.items():
        if "." in path or "\\" in path or prefixes:
            paths[id_] = _plain_path(id_, prefixes)

    paths.update(recordings or {})

    stems = {path: path.rpartition("/")[2] for path in paths.values() if "/" in path}
    if not stems or _end_alike(files, paths, stems):
        return paths
    return {id_: stems.get(path, path) for id_, path in paths.items()}


def names_of_recordings(
    ids: Sequence[Any], files: Sequence[Any], corpora: Iterable[str]
) -> dict[str, str]:
    """The name of the recording of each id that is this name in another spelling.

    EmoBox calls `1052_WSI_ANG_XX.wav` of CREMA-D `cremad-1052-WSI-ANG-XX`: other files, and what
    the name says of the speaker, go by the recording's own.
    """
    prefixes = [f"{corpus}-" for corpus in corpora]
    names = {}
    for id_, file in zip(ids, files, strict=True):
        spelled = str(id_).strip()
        without_prefix = spelled
        for prefix in prefixes:
            without_prefix = without_prefix.removeprefix(prefix)
        name = _plain_path(str(file), ()).rpartition("/")[2]
        if name != without_prefix and name.replace("_", "-") == without_prefix.replace("_", "-"):
            names[spelled] = name
    return names


def _end_alike(
    files: Sequence[Iterable[str]], paths: Mapping[str, str], stems: Mapping[str, str]
) -> bool:
    """Whether a file has two ids of equal stems."""
    different = set(paths.values())
    if len(set(map(stems.get, different, different))) == len(different):
        return False
    for ids in files:
        of_file = set(map(paths.__getitem__, ids))
        if len(set(map(stems.get, of_file, of_file))) < len(of_file):
            return True
    return False


def _plain_path(id_: str, prefixes: Sequence[str]) -> str:
    """An id with forward slashes, without a prefix and without the ending of an audio file."""
    path = id_.replace("\\", "/").removeprefix("./")
    stem, _, ending = path.rpartition(".")
    if ending.casefold() in ENDINGS:
        path = stem
    for prefix in prefixes:
        path = path.removeprefix(prefix)
    return path
