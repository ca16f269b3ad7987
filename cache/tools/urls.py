"""URLs of this machine's files, as paths."""

import os
from pathlib import Path
from urllib.parse import unquote

from ser.errors import WrongUse

LOCAL = "file:"


def local_path(url: str) -> Path | None:
    """The path that a `file:` URL names, or that is no URL at all; None for any other URL.

    The other way is `Path.as_uri`: a URL spells a space as %20, a path spells it as it is. Raises
    `WrongUse` for a URL that names a machine, or no absolute path.
    """
    if not url.startswith(LOCAL):
        if "://" in url:
            return None
        # As it is if there is no such user.
        return Path(os.path.expanduser(url))  # noqa: PTH111

    place = url.removeprefix(LOCAL)
    host = ""
    if place.startswith("//"):
        host, _, rest = place.removeprefix("//").partition("/")
        place = f"/{rest}"
    if host not in ("", "localhost") or not place.startswith("/"):
        raise WrongUse(f"{url}: write file:///folder, with three slashes, or the path alone")

    path = unquote(place, errors="surrogateescape")
    # file:///C:/folder
    if os.name == "nt" and path[2:3] == ":":
        path = path.removeprefix("/")
    return Path(path)
