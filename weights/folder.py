"""What lies in the folder of a checkpoint, and what may not: only safetensors, and no code.

A pickle is only ever opened to convert it (see `convert.py`).
"""

from pathlib import Path

from ser.errors import WeightsError, ser_command

from .checkpoint import SHARED_PREPROCESSOR, read_json
from .ctranslate2 import is_ctranslate2
from .redirects import check_redirects

# Everything beside the tensors that decides what the encoder computes.
CONFIG_FILES = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
)

# Of these, what turns text into tokens: an encoder of speech has no use for it.
TOKENIZER_FILES = frozenset(CONFIG_FILES) - {"config.json", "preprocessor_config.json"}

# All that is read beside the tensors. generation_config.json says how Whisper transcribes.
FILES_BESIDE_WEIGHTS = (*CONFIG_FILES, SHARED_PREPROCESSOR, "generation_config.json")

# The patterns of the files that hold the tensors.
SAFETENSORS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")

# Its name where a repository holds one instead.
PICKLE = "pytorch_model.bin"


def check_config(folder: Path, name: str) -> None:
    """Raise `WeightsError` without a config.json, or if other code or weights would be loaded.

    `name` is what the user called it, for the message.
    """
    if not (folder / "config.json").exists():
        raise WeightsError(
            f"{name} holds no config.json, so it is not a checkpoint; give the folder that holds it"
        )

    for entry in folder.iterdir():
        if not (entry.is_file() or entry.is_dir()):
            raise WeightsError(f"{entry} is not a plain file; copy the whole folder again")

    for file in FILES_BESIDE_WEIGHTS:
        path = folder / file
        if not file.endswith("config.json") or not path.exists():
            continue
        check_redirects(name, file, read_json(path))


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors of a checkpoint.

    Raises `WeightsError` if it is not a checkpoint, or holds only pickles, or no weights.
    """
    check_config(folder, name)
    if is_ctranslate2(folder):
        raise WeightsError(
            f"{name} is a model of CTranslate2 (faster-whisper); `ser weights convert {name} DIR` "
            "writes a Whisper model as safetensors, then point at DIR"
        )

    whole = folder / "model.safetensors"
    if whole.exists():
        return [whole]

    index = folder / "model.safetensors.index.json"
    if index.exists():
        return shards(index, name)

    command = ser_command("weights", "convert", name, "DIR")
    raise WeightsError(
        f"{name} holds no model.safetensors; if its weights are a pickle, which could run code, "
        f"{command} writes them as safetensors, then point at DIR"
    )


def shards(index: Path, name: str) -> list[Path]:
    """The files that an index of shards names, sorted.

    Raises `WeightsError` unless all of them lie beside it.
    """
    weight_map = read_json(index).get("weight_map")
    files: set[str] = set()
    if isinstance(weight_map, dict):
        files.update(map(str, weight_map.values()))

    complete = bool(files)
    for file in files:
        # A name with a folder in it would lead outside.
        if Path(file).name != file or not (index.parent / file).is_file():
            complete = False

    if not complete:
        raise WeightsError(
            f"{name}: a file that {index.name} should name is missing here; copy the whole folder"
        )
    return [index.parent / file for file in sorted(files)]
