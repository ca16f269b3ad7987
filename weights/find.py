"""Find an encoder's checkpoint by Hugging Face id or folder: here, in the cache, or on the Hub."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ser.cache.spec import Spec
from ser.disk.paths import expand_user, real_path
from ser.errors import WeightsError, WrongUse

from .checkpoint import Checkpoint
from .digest import digest_checkpoint
from .folder import FILES_BESIDE_WEIGHTS, SAFETENSORS, shards, weight_files


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
    """The checkpoint in a local folder, in Hugging Face's cache, or (with a network) on the Hub.

    It is checked and hashed. With HF_HUB_OFFLINE=1 the network is never tried. Raises
    `WeightsError` with what to do, naming the `option` that points at another one.
    """
    name = str(id_or_folder)
    folder = find_folder(name, SAFETENSORS, f"and point at it with {option}")
    model = real_path(folder).name if expand_user(name).is_dir() else name
    digests = digest_checkpoint(folder, weight_files(folder, name))
    return Checkpoint(folder, model, digests.whole, digests.without_tokenizer, digests.files)


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


def find_folder(name: str, weights: Sequence[str], remedy: str) -> Path:
    """The folder that `name` stands for: one on this machine, or that of a Hugging Face id.

    Of an id, the files `weights` (patterns) and `FILES_BESIDE_WEIGHTS` are downloaded if necessary;
    with HF_HUB_OFFLINE=1 the network is never tried. Raises `WeightsError` with what to do, whose
    sentence ends in `remedy`.
    """
    folder = expand_user(name)
    if folder.is_dir():
        return folder.absolute()

    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        cached = _cached_folder(name, weights)
        if cached is not None:
            return cached
        patterns = [*weights, *FILES_BESIDE_WEIGHTS]
        return Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=10))
    except HFValidationError as error:
        raise WeightsError(
            f"{name}: no such folder, and it is not a Hugging Face id either; "
            f"copy the model's folder here, {remedy}"
        ) from error
    except Exception as error:
        # The Hub's client raises its own, requests', httpx' and OS errors.
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set"
        else:
            reason = f"could not be fetched ({type(error).__name__})"
        raise WeightsError(
            f"{name}: no such folder, and not in Hugging Face's cache, and {reason}; copy the "
            f"model's folder here from a machine with a network, {remedy}"
        ) from error


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
