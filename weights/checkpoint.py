"""A checkpoint on disk: its folder, its config.json and its preprocessor, without its tensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ser.disk.memory import name_what_does_not_fit
from ser.disk.read import read_named
from ser.errors import WeightsError

# Of layers, values or tokens.
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]

# In config.json: these weights were never trained.
RANDOM_MARK = "ser_random_weights"

# Where transformers 5 saves a preprocessor that belongs to a tokenizer, and looks before it reads
# preprocessor_config.json.
SHARED_PREPROCESSOR = "processor_config.json"

# Entries of config.json that some architectures call otherwise: `attribute_map` of their class in
# transformers.
NAMES_IN_CONFIG = {
    "distilbert": {"num_hidden_layers": "n_layers", "hidden_size": "dim"},
    "whisper": {"num_hidden_layers": "encoder_layers", "hidden_size": "d_model"},
}


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and safetensors, checked but not loaded.

    `model` is its Hugging Face id, or its folder's name.
    """

    path: Path
    model: str
    digest: str = field(repr=False)
    """Of its tensors and of all files beside them, see `digest.Digests.whole`."""
    speech_digest: str = field(default="", repr=False)
    """The same without the files of a tokenizer: what features of speech hang on."""
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The digest of each file by itself."""
    converted_from: str = ""
    """What ser has converted it from: "pytorch_model.bin"; empty if it was published as it is."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return read_json(self.path / "config.json")

    @cached_property
    def preprocessor(self) -> dict[str, Any] | None:
        """The preprocessor's settings: those that transformers would read, if there are any."""
        shared = shared_preprocessor(self.path)
        if shared is not None:
            return shared
        return plain_preprocessor(self.path)

    def setting(self, name: str, kind: Any = Size) -> Any:
        """An entry of config.json, as a whole number from 1 or another `kind`.

        Raises `WeightsError` if it is missing or of another kind: then this is not an encoder that
        ser can run.
        """
        name = NAMES_IN_CONFIG.get(self.architecture, {}).get(name, name)
        path = self.path / "config.json"
        if name not in self.config:
            raise WeightsError(f"{path} names no {name}: this is not an encoder that ser knows")

        try:
            return msgspec.convert(self.config[name], kind)
        except (msgspec.ValidationError, UnicodeEncodeError) as fault:
            # Of half a surrogate pair.
            raise WeightsError(f"{path}: {name} is wrong ({fault}); copy it again") from None

    @property
    def architecture(self) -> str:
        """`model_type` of config.json, such as `hubert`."""
        return str(self.config.get("model_type", "unknown"))

    @property
    def random(self) -> bool:
        """Whether the weights were never trained."""
        return bool(self.config.get(RANDOM_MARK, False))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file. Raises `WeightsError`."""
    try:
        with name_what_does_not_fit(path, WeightsError):
            return msgspec.convert(json.loads(read_named(path)), dict[str, Any])
    except WeightsError:
        raise
    except (OSError, ValueError, RecursionError, msgspec.ValidationError) as error:
        raise WeightsError(
            f"{path} cannot be read as a JSON object ({error}); copy it again"
        ) from error


def plain_preprocessor(folder: Path) -> dict[str, Any] | None:
    """The content of preprocessor_config.json; None if there is no such file."""
    path = folder / "preprocessor_config.json"
    return read_json(path) if path.exists() else None


def shared_preprocessor(folder: Path) -> dict[str, Any] | None:
    """The preprocessor's part of processor_config.json; None if there is none."""
    path = folder / SHARED_PREPROCESSOR
    if not path.exists():
        return None
    part = read_json(path).get("feature_extractor")
    return part if isinstance(part, dict) else None
