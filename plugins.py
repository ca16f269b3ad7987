"""What installed packages bring to ser: features, fusions and corpus formats, by entry points."""

from collections import UserDict
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from ser.errors import WrongUse

Entry = TypeVar("Entry")


class Registry(UserDict[str, Entry]):
    """What the names of one kind stand for.

    They are ser's own, those that this process adds, and those of installed packages. A package
    names what it brings as entry points of `group`, and is imported when that is first asked for:
    one that cannot be imported is in nobody else's way. Asking for a name raises `WrongUse`, naming
    the package, if it cannot be imported, brings something that is no `kind`, or takes a name that
    ser or another package has.
    """

    def __init__(self, noun: str, group: str, kind: Any, own: Mapping[str, Entry]) -> None:
        self.noun = noun
        self.kind = kind
        self._own = frozenset(own)
        self._brought = entry_points(group=group)

        # Until it is asked for, a package's name stands for its entry point. ser's names come
        # first, and stand for ser's own whatever a package says.
        entries: dict[str, Any] = dict(own)
        for point in self._brought:
            entries.setdefault(point.name, point)
        super().__init__(entries)

    def __getitem__(self, name: str) -> Entry:
        self._check_rivals(name)
        entry: Any = self.data[name]
        if isinstance(entry, EntryPoint):
            entry = self._load(name, entry)
            self.data[name] = entry
        return entry

    def package(self, name: str) -> str | None:
        """The installed package that brings this name, and its version, such as `ser-gated 1.0`.

        None: ser itself.
        """
        for point in self._brought.select(name=name):
            return _package(point)
        return None

    def _check_rivals(self, name: str) -> None:
        """Raise `WrongUse` if two packages bring this name, or ser and a package do."""
        rivals = ["ser"] if name in self._own else []
        for point in self._brought.select(name=name):
            rivals.append(_package(point))

        if len(rivals) > 1:
            raise WrongUse(
                f"{' and '.join(rivals)} both bring a {self.noun} called '{name}'; "
                f"uninstall {rivals[-1]}, or have it renamed there"
            )

    def _load(self, name: str, point: EntryPoint) -> Any:
        """Import what a package brings. Raises `WrongUse`."""
        subject = f"the {self.noun} '{name}' of {_package(point)}"
        remedy = "mend that package, or uninstall it"
        try:
            entry = point.load()
        # It is someone else's code: a script without a main guard may end the process.
        except (Exception, SystemExit) as fault:
            reason = f"{type(fault).__name__}: {' '.join(str(fault).split())}"
            raise WrongUse(f"{subject} cannot be imported ({reason}); {remedy}") from fault

        if not isinstance(entry, self.kind):
            kind = getattr(self.kind, "__name__", self.kind)
            raise WrongUse(f"{subject} is not a {kind}: {point.value}; {remedy}")
        return entry


def _package(point: EntryPoint) -> str:
    """The package of an entry point, and its version."""
    if point.dist is None:
        return point.value
    return f"{point.dist.name} {point.dist.version}"


def not_installed(subject: str, package: Any) -> str:
    """Why a `subject` is unknown, which a `package` brought that is not here now, and what to do.

    `package` is a name and version; None: ser itself brought it.
    """
    if package is None:
        return f"{subject}, which this ser does not know; train on one that it knows"
    requirement = str(package).replace(" ", "==")
    return f"{subject} of {package}, which is not installed here; run `pip install {requirement}`"
