"""The models in Hugging Face's cache and in ser's own, and what keeps ser from using them."""

from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from ser.errors import WeightsError

from .checkpoint import Checkpoint
from .folder import PICKLE, check_config, weight_files
from .kept import list_kept


@dataclass(frozen=True)
class CachedModel:
    """A model in a cache; in Hugging Face's at its newest revision."""

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
    is_pickle: bool = False
    """Whether it has to be converted, as it is when it is first used."""
    is_converted: bool = False
    """Whether ser has converted it, into its own cache."""


def list_checkpoints() -> list[CachedModel]:
    """The models in Hugging Face's cache by their ids, then those that ser has converted."""
    return [*_downloaded(), *_converted()]


def _downloaded() -> list[CachedModel]:
    """The models in Hugging Face's cache."""
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
        models.append(_inspect(repository.repo_id, newest.snapshot_path, repository.size_on_disk))
    return models


def _inspect(model: str, folder: Path, size: int) -> CachedModel:
    """A model in Hugging Face's cache: its architecture, or what keeps ser from using it."""
    path = str(folder)
    is_pickle = False
    try:
        check_config(folder, model)
        is_pickle = (folder / PICKLE).exists() and not any(folder.glob("model*.safetensors"))
        if not is_pickle:
            weight_files(folder, model)
        architecture = Checkpoint(folder, model, "").architecture
    except WeightsError as error:
        return CachedModel(model, path, size, "unknown", str(error))
    return CachedModel(model, path, size, architecture, None, is_pickle=is_pickle)


def _converted() -> list[CachedModel]:
    """The models in ser's own cache."""
    models = []
    for kept in list_kept():
        size = sum(file.stat().st_size for file in kept.path.iterdir())
        architecture = Checkpoint(kept.path, kept.model, "").architecture
        models.append(
            CachedModel(kept.model, str(kept.path), size, architecture, None, is_converted=True)
        )
    return models
