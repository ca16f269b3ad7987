"""Which audio paths may enter a manifest: they are data from someone else's files, never trusted."""

from pathlib import Path, PurePosixPath

from ser.cache.ids import invisible


def path_fault(audio: str, root: Path, follow_links: bool) -> str | None:
    """Why this path cannot be an utterance's audio, or None. `audio` is relative to `root`.

    `follow_links`: whoever laid out a corpus folder may have linked parts of it from another disk, but the paths that
    a table names stay under its folder, links included.
    """
    if invisible(audio):
        return f"the audio path {audio!a} holds a control character or is not valid Unicode"
    pure = PurePosixPath(audio.replace("\\", "/"))
    if pure.is_absolute() or audio[1:2] == ":":
        return f"the audio path {audio} is absolute; give it relative to {root}"
    if ".." in pure.parts:
        return f"the audio path {audio} leaves the corpus with '..'; move the file under {root}"
    if not follow_links and not (root / audio).resolve().is_relative_to(root.resolve()):
        return f"the audio path {audio} is a link that leaves the corpus; move the file under {root}"
    return None
