"""Find an encoder's checkpoint by Hugging Face id or folder: here, in a cache, or on the Hub."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ser.cache.spec import Spec
from ser.disk.paths import expand_user, real_path
from ser.errors import WrongUse

from .checkpoint import Checkpoint
from .convert import convert_once
from .digest import hash_checkpoint
from .folder import PICKLE
from .hub import OnDownload
from .source import Source, fetch, find_source


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


def find_checkpoint(
    id_or_folder: str | Path, option: str = "--model NAME=PATH", convert: bool = True
) -> Checkpoint:
    """The checkpoint in a local folder, in a cache, or (with a network) on the Hub.

    It is checked and hashed. A model that is published as a pickle alone is converted once, unless
    `convert` is False. With HF_HUB_OFFLINE=1 the network is never tried. Raises `WeightsError` with
    what to do, naming the `option` that points at another one.
    """
    return open_source(find_source(str(id_or_folder), pointing_with(option), convert))


def pointing_with(option: str) -> str:
    """How a message ends that tells the user to bring a checkpoint to this machine."""
    return f"and point at it with {option}"


def open_source(source: Source, on_download: OnDownload | None = None) -> Checkpoint:
    """The checkpoint of a source, checked and hashed: downloaded and converted if it has to be.

    Raises `WeightsError`, `StoreError` if a disk is full, and `SerError` for a pickle that holds
    more than tensors.
    """
    folder = fetch(source, on_download)
    converted_from = ""
    if source.pickle:
        folder = convert_once(source.name, folder)
    if source.pickle or source.is_kept:
        converted_from = PICKLE

    is_folder = expand_user(source.name).is_dir()
    model = real_path(folder).name if is_folder else source.name
    return hash_checkpoint(folder, source.name, model, converted_from)


def recorded_checkpoint(spec: Spec, models: Mapping[str, str]) -> Checkpoint:
    """The checkpoint that a feature was computed with.

    It is looked for where `models` has it, by feature, or where extraction found it. Raises
    `WrongUse` for another one, for a folder that is missing now, and if neither is recorded.
    """
    # Of a store from elsewhere, provenance may hold anything.
    folder = str(spec.provenance.get("folder") or "")
    model = str(spec.provenance.get("model") or "")
    digest = str(spec.checkpoint.get("digest"))

    source = models.get(spec.feature) or folder or model or "(not recorded)"
    option = f"--model {spec.feature}=PATH"
    checkpoint = find_checkpoint(source, option)
    if digest not in (checkpoint.digest, checkpoint.speech_digest):
        raise WrongUse(
            f"{source}: is not the checkpoint that {spec.name} was computed with "
            f"({model}, digest {digest[:12]}…{_difference(spec, checkpoint)}); "
            f"point at that one with {option}"
        )
    return checkpoint


def _difference(spec: Spec, checkpoint: Checkpoint) -> str:
    """Which files of a checkpoint are not those of the spec, in words; else the digest here."""
    recorded = spec.provenance.get("files")
    differing = []
    if isinstance(recorded, dict):
        for name in sorted(recorded.keys() | checkpoint.files.keys()):
            if recorded.get(name) != short_digest(checkpoint.files.get(name)):
                differing.append(str(name))
    if not differing:
        here = checkpoint.speech_digest if spec.modality == "audio" else checkpoint.digest
        return f"; here {here[:12]}…"
    return f"; its {' and '.join(differing)} {'differs' if len(differing) == 1 else 'differ'}"


def short_digest(digest: str | None) -> str | None:
    """What a spec records of a file's digest: enough to see that it is another file."""
    return None if digest is None else digest[:12]
