"""A HuBERT bundle of torchaudio (the original fairseq weights) as a checkpoint of transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ser.errors import SerError, unknown

# Channels, kernel and stride of each convolution, where a bundle names none.
DEFAULT_CONVOLUTIONS = [
    [512, 10, 5],
    [512, 3, 2],
    [512, 3, 2],
    [512, 3, 2],
    [512, 3, 2],
    [512, 2, 2],
    [512, 2, 2],
]

# Entry of config.json → argument of torchaudio.models.wav2vec2_model.
ARGUMENT_OF_ENTRY = {
    "conv_bias": "extractor_conv_bias",
    "hidden_size": "encoder_embed_dim",
    "num_hidden_layers": "encoder_num_layers",
    "num_attention_heads": "encoder_num_heads",
    "intermediate_size": "encoder_ff_interm_features",
    "num_conv_pos_embeddings": "encoder_pos_conv_kernel",
    "num_conv_pos_embedding_groups": "encoder_pos_conv_groups",
    "do_stable_layer_norm": "encoder_layer_norm_first",
}

# Part of a tensor's name in torchaudio → in transformers. Applied in this order.
NAME_IN_TRANSFORMERS = {
    "encoder.feature_projection.": "feature_projection.",
    "encoder.transformer.": "encoder.",
    ".conv.weight_g": ".conv.parametrizations.weight.original0",
    ".conv.weight_v": ".conv.parametrizations.weight.original1",
}


def open_bundle(name: str, folder: Path) -> dict[str, Any]:
    """A bundle's tensors under transformers' names; its config and preprocessor go to `folder`.

    Raises `SerError` if torchaudio cannot be imported, and `WrongUse` for an unknown bundle.
    """
    try:
        import torchaudio
    except (ImportError, OSError) as fault:
        # OSError: a torchaudio built for another torch.
        kind = type(fault).__name__
        raise SerError(
            f"torchaudio cannot be imported here ({kind}): pip install 'ser-fusion[torchaudio]'"
        ) from fault
    from transformers import Wav2Vec2FeatureExtractor

    bundles = [known for known in dir(torchaudio.pipelines) if known.startswith("HUBERT")]
    if name not in bundles:
        raise unknown("HuBERT bundle of torchaudio", name, bundles)
    bundle = getattr(torchaudio.pipelines, name)
    model = bundle.get_model(dl_kwargs={"weights_only": True})

    config = torchaudio_config(bundle._params)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    preprocessor = Wav2Vec2FeatureExtractor(
        do_normalize=bool(bundle._normalize_waveform),
        return_attention_mask=True,
        sampling_rate=int(bundle.sample_rate),
    )
    preprocessor.save_pretrained(folder)
    return torchaudio_names(model.state_dict())


def torchaudio_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a `torchaudio.models.Wav2Vec2Model`, by `transformers.HubertModel`'s names."""
    renamed = {}
    for name, tensor in state.items():
        for part, replacement in NAME_IN_TRANSFORMERS.items():
            name = name.replace(part, replacement, 1)
        if not name.startswith("aux."):
            # The head of an ASR bundle.
            renamed[name] = tensor
    return renamed


def torchaudio_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """config.json for the arguments of `torchaudio.models.wav2vec2_model`."""
    # What torchaudio has no argument for.
    config: dict[str, Any] = {
        "model_type": "hubert",
        "architectures": ["HubertModel"],
        "feat_proj_layer_norm": True,
    }
    for entry, argument in ARGUMENT_OF_ENTRY.items():
        config[entry] = arguments[argument]

    convolutions = arguments["extractor_conv_layer_config"] or DEFAULT_CONVOLUTIONS
    config["conv_dim"] = [channels for channels, _, _ in convolutions]
    config["conv_kernel"] = [kernel for _, kernel, _ in convolutions]
    config["conv_stride"] = [stride for _, _, stride in convolutions]
    config["feat_extract_norm"] = arguments["extractor_mode"].removesuffix("_norm")
    config["num_feat_extract_layers"] = len(convolutions)
    return config
