"""Find an encoder checkpoint by Hugging Face id or folder, and refuse what could run code.

Only safetensors are read. A pickle is opened by `ser weights convert` alone (see `convert.py`).
"""

import hashlib
import json
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ser.cache.spec import Spec
from ser.disk.read import read_named
from ser.disk.records import canonical_json
from ser.errors import WeightsError, WrongUse

TABLE = tomllib.loads(Path(__file__).with_name("checkpoints.toml").read_text(encoding="utf-8"))
FILES: dict[str, list[str]] = TABLE["files"]
CONFIG_FILES, INCIDENTAL = FILES["config"], FILES["incidental"]
# Where transformers 5 saves a preprocessor that belongs to a tokenizer; it reads it before
# preprocessor_config.json.
SHARED = "processor_config.json"
BESIDE = (*CONFIG_FILES, SHARED, "generation_config.json")  # the last says how Whisper transcribes
MARK = "ser_random_weights"  # in config.json: these weights were never trained
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]  # of layers, values or tokens


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and safetensors, checked but not loaded. `model` is its id, or its
    folder's name.
    """

    path: Path
    model: str
    digest: str = field(repr=False)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return read_json(self.path / "config.json")

    @cached_property
    def preprocessor(self) -> dict[str, Any] | None:
        """The one of processor_config.json, which transformers prefers, or
        preprocessor_config.json.
        """
        shared, own = _preprocessors(self.path)
        return own if shared is None else shared

    def setting(self, name: str, kind: Any = Count) -> Any:
        """An entry of config.json, as a whole number from 1 or another `kind`.

        Raises `WeightsError` if it is missing or of another kind: then this is not an encoder that
        ser can run.
        """
        name = TABLE["names"].get(self.architecture, {}).get(name, name)
        if name not in self.config:
            raise WeightsError(
                f"{self.path / 'config.json'} names no {name}: this is not an encoder that ser knows"
            )
        try:
            return msgspec.convert(self.config[name], kind)
        except (msgspec.ValidationError, UnicodeEncodeError) as fault:  # of half a surrogate pair
            raise WeightsError(
                f"{self.path / 'config.json'}: {name} is wrong ({fault}); copy it again"
            ) from None

    @property
    def architecture(self) -> str:
        """`model_type` of config.json, such as `hubert`."""
        return str(self.config.get("model_type", "unknown"))

    @property
    def random(self) -> bool:
        """Whether the weights were never trained."""
        return bool(self.config.get(MARK, False))


def parse_models(models: Mapping[str, str] | Iterable[str]) -> dict[str, str]:
    """`--model NAME=ID_OR_PATH` entries, or a mapping, by feature name.

    Raises `WrongUse` for an entry of another form, or a name that appears twice.
    """
    if isinstance(models, Mapping):
        return dict(models)
    sources: dict[str, str] = {}
    for entry in models:
        name, _, source = entry.partition("=")
        if not name or not source or name in sources:
            raise WrongUse(f"--model {entry}: write --model NAME=ID_OR_PATH, each name once")
        sources[name] = source
    return sources


def find_checkpoint(id_or_folder: str | Path, option: str = "--model NAME=PATH") -> Checkpoint:
    """The checkpoint in a local folder, in Hugging Face's cache, or (with a network) on the Hub;
    hashed.

    With HF_HUB_OFFLINE=1 the network is never tried. Raises `WeightsError` with what to do, naming
    `option`.
    """
    name = str(id_or_folder)
    path = find_folder(name, FILES["safetensors"], f"and point at it with {option}")
    model = path.resolve().name if Path(name).expanduser().is_dir() else name
    return Checkpoint(path, model, digest(path, _weight_files(path, name)))


def recorded_checkpoint(spec: Spec, models: Mapping[str, str]) -> Checkpoint:
    """The checkpoint that a feature was computed with: where `models` has it, by feature, or where
    extraction found it.

    Raises `WrongUse` for another one, for a folder that is missing now, and if neither is recorded.
    """
    # Of a store from elsewhere, provenance may hold anything.
    folder, model = (str(spec.provenance.get(key) or "") for key in ("folder", "model"))
    source = models.get(spec.feature) or folder or model or "(not recorded)"
    option, recorded = f"--model {spec.feature}=PATH", str(spec.checkpoint.get("digest"))
    checkpoint = find_checkpoint(source, option)
    if checkpoint.digest != recorded:
        raise WrongUse(
            f"{source}: is not the checkpoint that {spec.name} was computed with ({model}, digest {recorded[:12]}…; "
            f"here {checkpoint.digest[:12]}…); point at that one with {option}"
        )
    return checkpoint


def find_folder(name: str, weights: list[str], then: str) -> Path:
    """The folder with the files `weights` (patterns) and `BESIDE`: one on this machine, or that of
    a Hugging Face id.

    It is downloaded if necessary; with HF_HUB_OFFLINE=1 the network is never tried. Raises
    `WeightsError` with what to do; `then` ends the sentence.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.absolute()
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = [*weights, *BESIDE]
    try:
        with suppress(OSError, WeightsError):  # not in the cache, or not all of it
            path = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
            for index in path.glob("*.index.json"):
                shards(index, name)
            if (path / "config.json").exists() and any(
                any(path.glob(pattern)) for pattern in weights
            ):
                return path
        return Path(snapshot_download(name, allow_patterns=wanted, etag_timeout=10))
    except HFValidationError as error:
        fault = f"{name}: no such folder, and it is not a Hugging Face id either"
        raise WeightsError(f"{fault}; copy the model's folder here, {then}") from error
    except Exception as error:  # the Hub's client raises its own, requests', httpx' and OS errors
        why = (
            "HF_HUB_OFFLINE is set"
            if constants.HF_HUB_OFFLINE
            else f"could not be fetched ({type(error).__name__})"
        )
        raise WeightsError(
            f"{name}: no such folder, and not in Hugging Face's cache, and {why}; copy the model's folder here from "
            f"a machine with a network, {then}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file. Raises `WeightsError`."""
    try:
        return msgspec.convert(json.loads(read_named(path)), dict[str, Any])
    except (OSError, ValueError, RecursionError, msgspec.ValidationError) as error:
        raise WeightsError(
            f"{path} cannot be read as a JSON object ({error}); copy it again"
        ) from error


def check_config(path: Path, name: str) -> None:
    """Raise `WeightsError` for a folder without config.json, or one whose own code would have to
    run.
    """
    if not (path / "config.json").exists():
        raise WeightsError(
            f"{name} holds no config.json, so it is not a checkpoint; give the folder that holds it"
        )
    for entry in path.iterdir():
        if not (entry.is_file() or entry.is_dir()):
            raise WeightsError(f"{entry} is not a plain file; copy the whole folder again")
    for file in CONFIG_FILES:
        if (
            file.endswith("config.json")
            and (path / file).exists()
            and "auto_map" in read_json(path / file)
        ):
            raise WeightsError(
                f"{name}: {file} asks to run the repository's own code (auto_map), which ser never does"
            )


def _weight_files(path: Path, name: str) -> list[Path]:
    """The safetensors of a checkpoint. Raises `WeightsError` if it is not one, or holds only
    pickles, or no weights.
    """
    check_config(path, name)
    if (path / "model.safetensors").exists():
        return [path / "model.safetensors"]
    if (path / "model.safetensors.index.json").exists():
        return shards(path / "model.safetensors.index.json", name)
    raise WeightsError(
        f"{name} holds no model.safetensors; if its weights are a pickle, which could run code, `ser weights convert "
        f"{name} DIR` writes them as safetensors, then point at DIR"
    )


def shards(index: Path, name: str) -> list[Path]:
    """The files that an index of shards names. Raises `WeightsError` unless all of them lie beside
    it.
    """
    weight_map = read_json(index).get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    if not names or not all(
        Path(shard).name == shard and (index.parent / shard).is_file() for shard in names
    ):
        raise WeightsError(
            f"{name}: a file that {index.name} should name is missing here; copy the whole folder"
        )
    return [index.parent / shard for shard in names]


def _preprocessors(path: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The preprocessor of processor_config.json, and that of preprocessor_config.json."""
    own, shared = (
        read_json(p) if p.exists() else None
        for p in (path / "preprocessor_config.json", path / SHARED)
    )
    part = (shared or {}).get("feature_extractor")
    return part if isinstance(part, dict) else None, own


def digest(path: Path, files: list[Path]) -> str:
    """Sha256 of every tensor's name, dtype, shape and bytes, and of `CONFIG_FILES`: not of the
    layout in files.
    """
    tensors = {name: entry for file in files for name, entry in _hashed_tensors(file).items()}
    beside: dict[str, Any] = {}
    shared, own = _preprocessors(path)
    agree = own is not None and own == {**own, **(shared or {})}  # then SHARED adds nothing
    for file in filter(
        Path.exists, map(path.joinpath, CONFIG_FILES if agree else (*CONFIG_FILES, SHARED))
    ):
        if file.suffix == ".json":
            beside[file.name] = {
                key: value for key, value in read_json(file).items() if key not in INCIDENTAL
            }
        else:
            beside[file.name] = hashlib.sha256(read_named(file)).hexdigest()
    # The files as text, since they may hold NaN, which canonical JSON does not allow.
    return hashlib.sha256(
        canonical_json({"tensors": tensors, "files": json.dumps(beside, sort_keys=True)})
    ).hexdigest()


def _hashed_tensors(file: Path) -> dict[str, list[Any]]:
    """`[dtype, shape, sha256 of the bytes]` of every tensor in a file, by name."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with (
            safe_open(file, "pt") as tensors,
            ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
        ):

            def entry(name: str) -> list[Any]:  # hashing releases the GIL
                part, held = tensors.get_slice(name), tensors.get_tensor(name)
                content = held.reshape(-1).view(torch.uint8).numpy()
                return [part.get_dtype(), part.get_shape(), hashlib.sha256(content).hexdigest()]

            return dict(zip(tensors.keys(), pool.map(entry, tensors.keys()), strict=True))
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise WeightsError(
            f"{file} is not a readable safetensors file ({error}); copy it again"
        ) from error


def list_checkpoints() -> list[dict[str, Any]]:
    """The models in Hugging Face's cache: `model`, `path`, `bytes`, `architecture`, and `fault`
    (None: usable).
    """
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    repositories, checkpoints = list[Any](), list[dict[str, Any]]()
    with suppress(CacheNotFound):
        repositories = [
            one for one in scan_cache_dir().repos if one.repo_type == "model" and one.revisions
        ]
    for one in sorted(repositories, key=attrgetter("repo_id")):
        path = max(one.revisions, key=attrgetter("last_modified")).snapshot_path
        about = {"model": one.repo_id, "path": str(path), "bytes": one.size_on_disk}
        about |= {"architecture": "unknown", "fault": None}
        try:
            _weight_files(path, one.repo_id)
            about["architecture"] = Checkpoint(path, one.repo_id, "").architecture
        except WeightsError as error:
            about["fault"] = str(error)
        checkpoints.append(about)
    return checkpoints


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn any exception into a `WeightsError` that begins with `what`: transformers raises nearly
    every kind.
    """
    try:
        yield
    except Exception as error:
        raise WeightsError(
            f"{what}: {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error


def load_encoder(checkpoint: Checkpoint, kind: str = "AutoModel") -> Any:
    """The encoder as a `torch.nn.Module` in float32 and eval mode, without any head; or another
    `kind` of model.

    Raises `WeightsError` if the checkpoint lacks a weight: Hugging Face would fill it in at random.
    """
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    extra = {"add_pooling_layer": False} if checkpoint.architecture in {"bert", "mpnet"} else {}
    with loading(f"{checkpoint.path} cannot be loaded as {checkpoint.architecture}"):
        model, info = getattr(transformers, kind).from_pretrained(
            checkpoint.path,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **extra,
        )
    # SpecAugment's mask vector is for training only, and no feature comes from a pooler.
    missing = sorted(
        key for key in info["missing_keys"] if not key.startswith(("masked_spec_embed", "pooler."))
    )
    missing += [str(entry[0]) for entry in info.get("mismatched_keys", [])]
    if missing:
        raise WeightsError(
            f"{checkpoint.path} lacks {len(missing)} of its encoder's weights, such as {missing[0]}"
        )
    encoder = (
        model.encoder if (checkpoint.architecture, kind) == ("whisper", "AutoModel") else model
    )
    return encoder.eval().requires_grad_(False)
