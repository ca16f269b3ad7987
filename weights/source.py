"""Where a checkpoint comes from, and what has to be done before it can be opened."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ser.disk.paths import expand_user
from ser.errors import WeightsError, WrongUse

from .checkpoint import SHARED_PREPROCESSOR, Checkpoint
from .folder import FILES_BESIDE_WEIGHTS, PICKLE, SAFETENSORS, shards
from .hub import OnDownload, Repository, download, explained, look_up, still_to_come
from .kept import find_kept

# What says how large features will be: a few kilobytes.
CONFIGS = ("config.json", "preprocessor_config.json", SHARED_PREPROCESSOR)


@dataclass(frozen=True)
class Source:
    """Where a checkpoint comes from."""

    name: str
    """Its Hugging Face id, or the folder that the user named."""
    remedy: str
    """How a message about it ends: what points at another one."""
    folder: Path | None = None
    """The folder of its weights; None: they are not on this machine."""
    files: Sequence[str] = ()
    """What has to be downloaded, if it is not in Hugging Face's cache."""
    download: int = 0
    """Bytes that are not there."""
    pickle: int = 0
    """Bytes of the pickle that has to be converted; 0: there is none."""
    is_kept: bool = False
    """Whether it lies in ser's own cache, converted before."""

    @property
    def is_ready(self) -> bool:
        """Whether it can be opened as it is."""
        return self.folder is not None and not self.pickle


def find_source(name: str, remedy: str, convert: bool = True) -> Source:
    """Look for a checkpoint: a local folder, Hugging Face's cache, ser's own, then the Hub.

    Nothing is downloaded. With HF_HUB_OFFLINE=1 the network is never tried. Unless it may
    `convert`, a pickle is refused. Raises `WeightsError` with what to do, whose sentence ends in
    `remedy`.
    """
    folder = expand_user(name)
    if folder.is_dir():
        return Source(name, remedy, folder.absolute())
    _check_id(name, remedy)

    cached = _cached_folder(name, SAFETENSORS)
    if cached is not None:
        return Source(name, remedy, cached)
    kept = find_kept(name)
    if kept is not None:
        return Source(name, remedy, kept, is_kept=True)

    pickled = _cached_folder(name, [PICKLE])
    if pickled is not None:
        source = Source(name, remedy, pickled, pickle=(pickled / PICKLE).stat().st_size)
    else:
        source = _on_hub(look_up(name, remedy), remedy)
    if source.pickle and not convert:
        raise WeightsError(
            f"{name}: is published as a pickle alone, which could run code when it is opened, and "
            "--no-convert refuses to convert it in a child process; run the same command without "
            f"it, or convert a copy with `ser weights convert {name} DIR`, {remedy}"
        )
    return source


def fetch(source: Source, on_download: OnDownload | None = None) -> Path:
    """The folder of a source's safetensors or pickle, downloaded if necessary.

    Raises what `download` raises.
    """
    if source.folder is not None:
        return source.folder
    return download(source.name, source.files, source.download, source.remedy, on_download)


def fetch_config(source: Source) -> Checkpoint:
    """The checkpoint of a source as its config describes it, without weights and without a digest.

    Raises what `download` raises.
    """
    if source.folder is not None:
        return Checkpoint(source.folder, source.name, "")
    small = [name for name in CONFIGS if name in source.files]
    return Checkpoint(download(source.name, small, 0, source.remedy), source.name, "")


def find_pickle(name: str, remedy: str, on_download: OnDownload | None = None) -> Path:
    """The folder of a checkpoint's pickle: one on this machine, or that of a Hugging Face id.

    Raises `WrongUse` if there is none, and what `download` raises.
    """
    folder = expand_user(name)
    if folder.is_dir():
        return folder.absolute()
    _check_id(name, remedy)

    cached = _cached_folder(name, [PICKLE])
    if cached is not None:
        return cached
    repository = look_up(name, remedy)
    if PICKLE not in repository.sizes:
        raise WrongUse(f"{name} holds no {PICKLE} to convert; safetensors are used as they are")
    files = _files_of(repository, [PICKLE])
    return download(name, files, still_to_come(repository, files), remedy, on_download)


def _check_id(name: str, remedy: str) -> None:
    """Raise `WeightsError` for what is neither a folder nor an id: ids are made into paths."""
    from huggingface_hub.utils import validate_repo_id

    with explained(name, remedy):
        validate_repo_id(name)


def _on_hub(repository: Repository, remedy: str) -> Source:
    """What is needed of a repository. Raises `WeightsError` if it has no weights that ser reads."""
    weights = _weights_of(repository)
    if not weights or "config.json" not in repository.sizes:
        raise WeightsError(
            f"{repository.name}: its repository holds no config.json with safetensors or one "
            f"{PICKLE}, which are all that ser reads; copy the folder of a checkpoint that has "
            f"them here, {remedy}"
        )

    files = _files_of(repository, weights)
    return Source(
        repository.name,
        remedy,
        files=files,
        download=still_to_come(repository, files),
        pickle=repository.sizes[PICKLE] if weights == [PICKLE] else 0,
    )


def _weights_of(repository: Repository) -> list[str]:
    """The files that hold the tensors: safetensors, whole or in shards, else one pickle."""
    whole, shard, index = SAFETENSORS
    if whole in repository.sizes:
        return [whole]
    if index in repository.sizes:
        return [index, *(name for name in repository.sizes if fnmatchcase(name, shard))]
    return [PICKLE] if PICKLE in repository.sizes else []


def _files_of(repository: Repository, weights: Sequence[str]) -> list[str]:
    """The files of a repository that ser reads: its weights and what lies beside them."""
    beside = [name for name in FILES_BESIDE_WEIGHTS if name in repository.sizes]
    return [*weights, *beside]


def _cached_folder(name: str, weights: Sequence[str]) -> Path | None:
    """The folder of a Hugging Face id in the cache; None if it is not there, or not all of it."""
    from huggingface_hub import snapshot_download

    patterns = [*weights, *FILES_BESIDE_WEIGHTS]
    with suppress(OSError, WeightsError):
        folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        for index in folder.glob("*.index.json"):
            shards(index, name)
        has_weights = any(any(folder.glob(pattern)) for pattern in weights)
        if has_weights and (folder / "config.json").exists():
            return folder
    return None
