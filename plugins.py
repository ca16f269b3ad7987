"""What installed packages bring to ser: features, fusions and corpus formats, named by their entry
points.
"""

from collections import UserDict
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from ser.errors import WrongUse

Entry = TypeVar("Entry")


class Registry(UserDict[str, Entry]):
    """What the names of one kind stand for: ser's own, those that this process adds, and those of
    installed packages.

    A package names what it brings as entry points of `group`, and is imported when that is first
    asked for: one that cannot be imported is in nobody else's way. Asking for a name raises
    `WrongUse`, naming the package, if it cannot be imported, brings something that is no `kind`, or
    takes a name that ser or another package has.
    """

    def __init__(self, what: str, group: str, kind: Any, own: Mapping[str, Entry]) -> None:
        self.what, self.kind, self._own, self._brought = (
            what,
            kind,
            frozenset(own),
            entry_points(group=group),
        )
        places: dict[str, Any] = {point.name: point for point in self._brought}
        super().__init__({**own, **places, **own})

    def __getitem__(self, name: str) -> Entry:
        rivals = ["ser"] * (name in self._own) + [
            _package(point) for point in self._brought.select(name=name)
        ]
        if len(rivals) > 1:
            both = f"{' and '.join(rivals)} both bring a {self.what} called '{name}'"
            raise WrongUse(f"{both}; uninstall {rivals[-1]}, or have it renamed there")
        if isinstance(point := self.data[name], EntryPoint):
            where = f"the {self.what} '{name}' of {_package(point)}"
            try:
                entry = point.load()
            except Exception as fault:  # it is someone else's code
                reason = f"{type(fault).__name__}: {' '.join(str(fault).split())}"
                raise WrongUse(
                    f"{where} cannot be imported ({reason}); mend that package, or uninstall it"
                ) from fault
            if not isinstance(entry, self.kind):
                kind = getattr(self.kind, "__name__", self.kind)
                raise WrongUse(
                    f"{where} is not a {kind}: {point.value}; mend that package, or uninstall it"
                )
            self.data[name] = entry
        return self.data[name]

    def package(self, name: str) -> str | None:
        """The installed package that brings this name, and its version, such as `ser-gated 1.0`;
        None: ser itself.
        """
        return next(map(_package, self._brought.select(name=name)), None)


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def not_installed(what: str, package: Any) -> str:
    """Why `what`, which a `package` brought that is not here now, is unknown, and what to do."""
    if package is None:
        return f"{what}, which this ser does not know; train on one that it knows"
    return f"{what} of {package}, which is not installed here; run `pip install {str(package).replace(' ', '==')}`"
