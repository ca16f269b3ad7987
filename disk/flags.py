"""The flags of `os.open`, which differ between systems; zero where a system has none."""

import os

# Of these Windows has O_BINARY alone, and changes line ends without it.
O_DIRECT = getattr(os, "O_DIRECT", 0)
O_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
O_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
O_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
O_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
O_BINARY = getattr(os, "O_BINARY", 0)

# A plain file: no link is followed, and opening a pipe does not wait for its writer.
PLAIN = O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_BINARY
