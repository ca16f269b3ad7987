"""Which features a run trains on: names of the command line, resolved in the store by modality."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ser.cache.errors import WrongUse
from ser.cache.store import Feature, Store

Pool = Literal["mean", "meanstd"]


@dataclass(frozen=True)
class Choice:
    """A feature that training asks for, and how its frames become a vector where the fusion takes vectors.

    `extra` names what is read of it in the place of its values, such as its token ids.
    """

    feature: Feature
    pool: Pool = "mean"
    extra: str | None = None

    @property
    def modality(self) -> str:
        """Whether it is audio or text."""
        return self.feature.spec.modality

    def dim(self, vectors: bool) -> int:
        """Dimension of what the model gets: frames as stored, or one vector for each utterance."""
        both = vectors and self.pool == "meanstd" and self.feature.spec.level != "utterance"
        return self.feature.spec.dim * (2 if both else 1)

    @property
    def described(self) -> dict[str, Any]:
        """What a run's config records of it."""
        return {"feature": self.feature.spec.name, "fingerprint": self.feature.fingerprint, "pool": self.pool}


def choose_features(store: Store, names: str, corpus: str) -> dict[str, Choice]:
    """The features of `names` ("hubert+mpnet", "is13+bert:pool=meanstd") by modality; their order does not matter.

    Raises `WrongUse` for two features of one modality, and what `store.feature` raises for one that is not there.
    """
    chosen: dict[str, Choice] = {}
    for name in names.split("+"):
        plain, pool = _split_pool(name.strip())
        choice = Choice(store.feature(plain, corpus=corpus), pool)
        if (other := chosen.get(choice.modality)) is not None:
            raise WrongUse(
                f"--features {names}: {other.feature.spec.name} and {choice.feature.spec.name} are both "
                f"{choice.modality} features, and a fusion takes one of each; train one run for each of them"
            )
        chosen[choice.modality] = choice
    return chosen


def choose_views(store: Store, names: str, chosen: Mapping[str, Choice], corpus: str) -> list[Choice]:
    """The augmented features of `names` ("logmel:view=pitch-1+logmel:view=noise-1"), each beside the plain feature.

    Raises `WrongUse` for one that cannot stand in the place of a feature of `chosen`.
    """
    views = []
    for name in filter(None, names.split("+")):
        plain, pool = _split_pool(name.strip())
        view = Choice(store.feature(plain, corpus=corpus), pool)
        beside = chosen.get(view.modality)
        if beside is None or (beside.feature.spec.level, beside.feature.spec.dim, beside.pool) != (
            view.feature.spec.level,
            view.feature.spec.dim,
            pool,
        ):
            plainly = beside.feature.spec.name if beside else "any feature that is trained on"
            raise WrongUse(f"--views {name}: cannot stand in the place of {plainly}: another level, dimension or pool")
        views.append(view)
    return views


def _split_pool(name: str) -> tuple[str, Pool]:
    """`bert:layer=9,pool=meanstd@3f2a` → (`bert:layer=9@3f2a`, "meanstd")."""
    body, at, fingerprint = name.partition("@")
    feature, _, variant = body.partition(":")
    settings = [item for item in variant.split(",") if item]
    pools = [item.removeprefix("pool=") for item in settings if item.startswith("pool=")]
    pool = pools[-1] if pools else "mean"
    if pool not in ("mean", "meanstd"):
        raise WrongUse(f"{name}: pool must be mean or meanstd")
    kept = ",".join(item for item in settings if not item.startswith("pool="))
    return f"{feature}{':' if kept else ''}{kept}{at}{fingerprint}", pool  # type: ignore[return-value]
