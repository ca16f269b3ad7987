"""The models in Hugging Face's cache, and what keeps ser from using them."""

from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from ser.errors import WeightsError

from .checkpoint import Checkpoint
from .folder import weight_files


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache, at its newest revision."""

    model: str
    """Its Hugging Face id."""
    path: str
    """The folder of that revision."""
    bytes: int
    """Its size on disk, all revisions together."""
    architecture: str
    """`model_type` of its config.json; "unknown" if it cannot be used."""
    fault: str | None
    """Why ser cannot use it; None: it can."""


def list_checkpoints() -> list[CachedModel]:
    """The models in Hugging Face's cache, by their ids."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []

    models = []
    for repository in sorted(repositories, key=attrgetter("repo_id")):
        if repository.repo_type != "model" or not repository.revisions:
            continue
        newest = max(repository.revisions, key=attrgetter("last_modified"))
        folder = newest.snapshot_path
        architecture, fault = _inspect(folder, repository.repo_id)
        models.append(
            CachedModel(
                repository.repo_id, str(folder), repository.size_on_disk, architecture, fault
            )
        )
    return models


def _inspect(folder: Path, model: str) -> tuple[str, str | None]:
    """The architecture of a model, and what keeps ser from using it."""
    try:
        weight_files(folder, model)
        return Checkpoint(folder, model, "").architecture, None
    except WeightsError as error:
        return "unknown", str(error)
