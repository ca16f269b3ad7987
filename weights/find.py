"""Find an encoder checkpoint by Hugging Face id or folder, and refuse what could run code.

Only safetensors are read. A pickle is opened by `ser weights convert` alone (see `convert.py`).
"""

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .files import CONFIG_FILES, MARK, NoWeights, digest, read_json

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and safetensors, checked but not loaded. `model` is its id, or its folder's name."""

    path: Path
    model: str
    digest: str = field(repr=False)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return read_json(self.path / "config.json")

    @cached_property
    def preprocessor(self) -> dict[str, Any] | None:
        """preprocessor_config.json, where there is one."""
        path = self.path / "preprocessor_config.json"
        return read_json(path) if path.exists() else None

    def setting(self, name: str) -> Any:
        """An entry of config.json. Raises `NoWeights` if it is not there: then this is no encoder that ser can run."""
        if name not in self.config:
            raise NoWeights(f"{self.path / 'config.json'} names no {name}: this is no encoder that ser knows")
        return self.config[name]

    @property
    def architecture(self) -> str:
        """`model_type` of config.json, such as `hubert`."""
        return str(self.config.get("model_type", "unknown"))

    @property
    def random(self) -> bool:
        """Whether the weights were never trained."""
        return bool(self.config.get(MARK, False))


def find_checkpoint(id_or_folder: str | Path, option: str = "--model NAME=PATH") -> Checkpoint:
    """The checkpoint in a local folder, in Hugging Face's cache, or (with a network) on the Hub; hashed.

    With HF_HUB_OFFLINE=1 the network is never tried. Raises `NoWeights` with what to do, naming `option`.
    """
    name = str(id_or_folder)
    folder = Path(name).expanduser()
    if folder.is_dir():
        path, model = folder, folder.resolve().name
    elif folder.exists():
        raise NoWeights(f"{name} is a file; give the folder that holds config.json and model.safetensors")
    elif is_hub_id(name):
        path, model = _on_hub(name, option), name
    else:
        raise NoWeights(f"{name}: there is no such folder, and it is no Hugging Face id either")
    _refuse_code(path, name)
    return Checkpoint(path, model, digest(path, weight_files(path, name)))


def is_hub_id(name: str) -> bool:
    """Whether `name` could be a Hugging Face id, such as `facebook/hubert-base-ls960`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _on_hub(name: str, option: str) -> Path:
    from huggingface_hub import snapshot_download

    weights = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]
    wanted = [*weights, *CONFIG_FILES]
    try:
        path = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        if (path / "config.json").exists() and any(path.glob("*.safetensors")):
            return path
    except (OSError, ValueError):  # not in the cache
        pass
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}
    if not offline:
        try:
            return Path(snapshot_download(name, allow_patterns=wanted, etag_timeout=10))
        except Exception as fault:  # the Hub's client raises its own, requests', httpx' and OS errors
            why = f"is not in Hugging Face's cache and could not be fetched ({type(fault).__name__})"
            raise NoWeights(_how_to(name, why, option)) from fault
    raise NoWeights(_how_to(name, "is not in Hugging Face's cache, and HF_HUB_OFFLINE is set", option))


def _how_to(name: str, why: str, option: str) -> str:
    return (
        f"the checkpoint {name} {why}; copy the model's folder here from a machine with a network, and point at it "
        f"with {option}"
    )


def _refuse_code(path: Path, name: str) -> None:
    if not (path / "config.json").exists():
        raise NoWeights(f"{name} holds no config.json, so it is no checkpoint; give the folder that holds it")
    for file in CONFIG_FILES:
        if file.endswith("config.json") and (path / file).exists() and "auto_map" in read_json(path / file):
            raise NoWeights(f"{name}: {file} asks to run the repository's own code (auto_map), which ser never does")


def weight_files(path: Path, name: str) -> list[Path]:
    """The safetensors of a checkpoint. Raises `NoWeights` where there are only pickles, or none."""
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").exists():
        return [path / "model.safetensors"]
    if index.exists():
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        if any("/" in shard or "\\" in shard or not (path / shard).exists() for shard in shards) or not shards:
            raise NoWeights(f"{name}: a file that {index.name} names is missing; copy the whole folder")
        return [path / shard for shard in shards]
    if any(entry.suffix in PICKLES for entry in path.iterdir()):
        raise NoWeights(
            f"{name} holds its weights as a pickle, which could run code; "
            f"`ser weights convert {name} DIR` writes them as safetensors, then point at DIR"
        )
    raise NoWeights(
        f"{name} holds no model.safetensors; if it publishes pickles only, `ser weights convert {name} DIR` "
        "writes them as safetensors"
    )


def list_checkpoints() -> list[dict[str, Any]]:
    """What lies in Hugging Face's cache: `model`, `path`, `bytes`, `architecture`, and `fault` (None: it is usable)."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = []
    for repository in sorted(repositories, key=lambda entry: entry.repo_id):
        if repository.repo_type != "model" or not repository.revisions:
            continue
        path = max(repository.revisions, key=lambda revision: revision.last_modified).snapshot_path
        fault, architecture = None, "unknown"
        try:
            _refuse_code(path, repository.repo_id)
            weight_files(path, repository.repo_id)
            architecture = str(read_json(path / "config.json").get("model_type", architecture))
        except NoWeights as error:
            fault = str(error)
        size = repository.size_on_disk
        found.append(
            {
                "model": repository.repo_id,
                "path": str(path),
                "bytes": size,
                "architecture": architecture,
                "fault": fault,
            }
        )
    return found
