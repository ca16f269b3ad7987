"""Find an encoder checkpoint by Hugging Face id or folder, and refuse what could run code.

Only safetensors are read. A pickle is opened by `ser weights convert` alone (see `convert.py`).
"""

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ser.cache.spec import canonical_json
from ser.errors import WeightsError, WrongUse

# Everything beside the tensors that decides what the encoder computes.
CONFIG_FILES = (
    *("config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
)
# Where the file came from and what wrote it: the same model keeps its fingerprint when it is saved again.
INCIDENTAL = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "name_or_path", "_commit_hash"}
MARK = "ser_random_weights"  # in config.json: these weights were never trained


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise WeightsError(f"{path} cannot be read as JSON ({fault})") from fault
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is no JSON object")
    return content


def digest(path: Path, files: list[Path]) -> str:
    """Sha256 over every tensor's name, dtype, shape and bytes, and over `CONFIG_FILES`: not over the file layout."""
    tensors = {name: entry for file in files for name, entry in _hashed_tensors(file)}
    beside: dict[str, Any] = {}
    for file in CONFIG_FILES:
        if not (path / file).exists():
            continue
        if file.endswith(".json"):
            content = read_json(path / file)
            beside[file] = {key: value for key, value in content.items() if key not in INCIDENTAL}
        else:
            beside[file] = hashlib.sha256((path / file).read_bytes()).hexdigest()
    # allow_nan is off in canonical JSON, and tokenizers hold no floats that matter: dumps are compared as text.
    return hashlib.sha256(canonical_json({"tensors": tensors, "files": _spelled(beside)})).hexdigest()


def _spelled(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _hashed_tensors(file: Path) -> Iterator[tuple[str, list[Any]]]:
    """`name, [dtype, shape, sha256 of the bytes]` of every tensor, straight from the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np"):  # its header checks: overlaps, holes, sizes that lie
            pass
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            [size] = struct.unpack("<Q", content[:8])
            header = json.loads(content[8 : 8 + size])
            view = memoryview(content)
            try:
                for name in sorted(header.keys() - {"__metadata__"}):
                    start, stop = header[name]["data_offsets"]
                    piece = view[8 + size + start : 8 + size + stop]
                    yield name, [header[name]["dtype"], header[name]["shape"], hashlib.sha256(piece).hexdigest()]
                    piece.release()
            finally:
                view.release()
    except (SafetensorError, ValueError, KeyError, struct.error) as fault:
        raise WeightsError(f"{file} is no readable safetensors file ({fault}); copy it again") from fault


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
        """An entry of config.json. Raises `WeightsError` if it is not there: then this is no encoder that ser can run."""
        if name not in self.config:
            raise WeightsError(f"{self.path / 'config.json'} names no {name}: this is no encoder that ser knows")
        return self.config[name]

    @property
    def architecture(self) -> str:
        """`model_type` of config.json, such as `hubert`."""
        return str(self.config.get("model_type", "unknown"))

    @property
    def random(self) -> bool:
        """Whether the weights were never trained."""
        return bool(self.config.get(MARK, False))


def parse_models(models: Mapping[str, str] | Iterable[str]) -> dict[str, str]:
    """`--model NAME=ID_OR_PATH` entries (or a mapping already) by feature name.

    Raises `WrongUse` for an entry that is not written so, or a name that stands twice.
    """
    if isinstance(models, Mapping):
        return dict(models)
    found: dict[str, str] = {}
    for entry in models:
        name, _, source = entry.partition("=")
        if not name or not source or name in found:
            raise WrongUse(f"--model {entry}: write --model NAME=ID_OR_PATH, each name once")
        found[name] = source
    return found


def find_checkpoint(id_or_folder: str | Path, option: str = "--model NAME=PATH") -> Checkpoint:
    """The checkpoint in a local folder, in Hugging Face's cache, or (with a network) on the Hub; hashed.

    With HF_HUB_OFFLINE=1 the network is never tried. Raises `WeightsError` with what to do, naming `option`.
    """
    name = str(id_or_folder)
    folder = Path(name).expanduser()
    if folder.is_dir():
        path, model = folder, folder.resolve().name
    elif folder.exists():
        raise WeightsError(f"{name} is a file; give the folder that holds config.json and model.safetensors")
    elif is_hub_id(name):
        path, model = _on_hub(name, option), name
    else:
        raise WeightsError(f"{name}: there is no such folder, and it is no Hugging Face id either")
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
            raise WeightsError(_how_to(name, why, option)) from fault
    raise WeightsError(_how_to(name, "is not in Hugging Face's cache, and HF_HUB_OFFLINE is set", option))


def _how_to(name: str, why: str, option: str) -> str:
    return (
        f"the checkpoint {name} {why}; copy the model's folder here from a machine with a network, and point at it "
        f"with {option}"
    )


def _refuse_code(path: Path, name: str) -> None:
    if not (path / "config.json").exists():
        raise WeightsError(f"{name} holds no config.json, so it is no checkpoint; give the folder that holds it")
    for file in CONFIG_FILES:
        if file.endswith("config.json") and (path / file).exists() and "auto_map" in read_json(path / file):
            raise WeightsError(f"{name}: {file} asks to run the repository's own code (auto_map), which ser never does")


def weight_files(path: Path, name: str) -> list[Path]:
    """The safetensors of a checkpoint. Raises `WeightsError` where there are only pickles, or none."""
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").exists():
        return [path / "model.safetensors"]
    if index.exists():
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        if any("/" in shard or "\\" in shard or not (path / shard).exists() for shard in shards) or not shards:
            raise WeightsError(f"{name}: a file that {index.name} names is missing; copy the whole folder")
        return [path / shard for shard in shards]
    if any(entry.suffix in PICKLES for entry in path.iterdir()):
        raise WeightsError(
            f"{name} holds its weights as a pickle, which could run code; "
            f"`ser weights convert {name} DIR` writes them as safetensors, then point at DIR"
        )
    raise WeightsError(
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
        except WeightsError as error:
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


def load_encoder(checkpoint: Checkpoint) -> Any:
    """The encoder as a `torch.nn.Module` in float32 and eval mode, without any head.

    Raises `WeightsError` if the checkpoint lacks a weight: Hugging Face would fill it in at random.
    """
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    extra = {"add_pooling_layer": False} if checkpoint.architecture in {"bert", "mpnet"} else {}
    try:
        model, info = transformers.AutoModel.from_pretrained(
            checkpoint.path,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **extra,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as fault:
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise WeightsError(f"{checkpoint.path} cannot be loaded as {checkpoint.architecture}: {reason}") from fault
    # SpecAugment's mask vector serves training alone.
    lacking = sorted(set(info["missing_keys"]) - {"masked_spec_embed"})
    lacking += [str(entry[0]) for entry in info.get("mismatched_keys", [])]
    if lacking:
        raise WeightsError(f"{checkpoint.path} lacks {len(lacking)} of its encoder's weights, such as {lacking[0]}")
    return model.eval().requires_grad_(False)
