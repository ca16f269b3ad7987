"""README.md of an exported run: a model card, with a header that the Hugging Face Hub reads."""

import json

from ser.predict import Predictor
from ser.predict.trained import ExportRecord, InputRecord
from ser.train.data.utterances import DIMENSIONS
from ser.train.report.markdown import ESCAPES
from ser.train.scores.measures import SHOWN
from ser.train.targets import TARGETS


def model_card(predictor: Predictor, record: ExportRecord) -> str:
    """The whole card."""
    sections = [
        header(predictor, record),
        introduction(predictor),
        facts(predictor),
        "The scores are of one fold and one seed: a result is the mean over all folds, and several "
        "seeds (`ser report`).\nA model of acted speech in one language says little about other "
        "speech. Measure it on yours first.",
        use(predictor, record),
        features(record),
        licences(predictor),
    ]
    return "\n\n".join(sections) + "\n"


def plain(text: object) -> str:
    """Text that Markdown takes as it is."""
    return str(text).translate(ESCAPES)


def header(predictor: Predictor, record: ExportRecord) -> str:
    """The metadata, as YAML."""
    library = "ser" if record.no_graph else "onnx"
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: audio-classification",
        f"tags: [speech-emotion-recognition, {json.dumps(predictor.fusion.name)}]",
        "---",
    ]
    return "\n".join(lines)


def introduction(predictor: Predictor) -> str:
    """What it is, and what it must not be taken for."""
    result = predictor.run.result
    corpus = plain(predictor.run.config.corpus)
    paragraphs = [f"# {plain(predictor.fusion.name)} on {corpus}"]
    if result.synthetic:
        paragraphs.append(
            "**Trained on synthetic speech: it shows that the pipeline works, and says nothing "
            "about people.**"
        )
    if result.random_weights:
        names = plain(", ".join(result.random_weights))
        paragraphs.append(
            f"**Its features were computed with random weights ({names}): it is of no use on "
            "speech.**"
        )

    predicted: list[str] = []
    if predictor.classes:
        predicted.append(plain(", ".join(predictor.classes)))
    if TARGETS[predictor.config.target].rated:
        predicted.append("valence, arousal and dominance")
    paragraphs.append(
        f"A speech emotion model, `{predictor.fusion.name}` ({predictor.fusion.source}). It tells "
        f"{' and '.join(predicted)}."
    )
    return "\n\n".join(paragraphs)


def facts(predictor: Predictor) -> str:
    """Corpus, protocol and scores, as a table."""
    config = predictor.run.config
    result = predictor.run.result
    sizes = ", ".join(f"{name} {size}" for name, size in result.parts.items())
    names = " and ".join(record.feature for record in config.features.values())
    rows: list[tuple[str, object]] = [
        ("corpus", f"{config.corpus}, {sizes} utterances"),
        ("features", names),
        ("labels", result.labels),
        ("protocol", f"{result.protocol}, {result.fold}: this is the model of one fold"),
        ("dev part", result.dev),
        ("epoch chosen by", result.select),
        ("seed", result.seed),
    ]
    for name, score in SHOWN.items():
        value = result.score(score)
        if value is not None:
            rows.append((f"{name} of the test part", f"{100 * value:.2f} %"))
    for name, value in (result.ccc or {}).items():
        rows.append((f"CCC of {name} of the test part", f"{value:.3f}"))
    calibration = predictor.run.result.calibration
    if calibration is not None:
        how = "fitted on the dev part"
        if calibration.unfitted:
            how = f"not fitted: {calibration.unfitted}"
        rows.append(("temperature", f"{calibration.temperature:.3f}, {how}"))

    lines = ["| | |", "|---|---|"]
    lines += [f"| {name} | {plain(value)} |" for name, value in rows]
    return "\n".join(lines)


def use(predictor: Predictor, record: ExportRecord) -> str:
    """Inputs, outputs and an example."""
    if record.no_graph is not None:
        return (
            f"## Use\n\nThere is no `model.onnx` here: {plain(record.no_graph)}. "
            f"`model.safetensors` holds the trained weights, for {_what_to_install(predictor)}:"
            f"\n\n```sh\n{_predict_command(predictor)}\n```"
        )

    takes_waveform = record.inputs[0].name == "waveform"
    is_of_dialogues = predictor.fusion.unit == "dialogue"
    by_turns = is_of_dialogues and not takes_waveform
    lines = ["## Use", ""]
    for graph_input in record.inputs:
        lines.append(f"- input `{graph_input.name}`: {graph_input.dtype} {_shape(graph_input)}")
    rows = "turns" if by_turns else 1
    if predictor.classes:
        k = len(predictor.classes)
        tempered = "of the logits divided by the temperature" if predictor.temperature else ""
        lines.append(f"- output `logits`: [{rows}, {k}], of {plain(', '.join(record.classes))}")
        lines.append(f"- output `probabilities`: [{rows}, {k}], softmax {tempered}".rstrip())
    if "ratings" in record.outputs:
        lines.append(
            f"- output `ratings`: [{rows}, 3], {', '.join(DIMENSIONS)} on the scale of the corpus"
        )
    if by_turns:
        lines.append("- the rows are the turns of one dialogue, in their order")
    elif is_of_dialogues:
        lines.append(
            "- the waveform is one turn, and a dialogue of its own: the model was trained on whole "
            "dialogues, and `ser predict FOLDER --table` takes them"
        )
    if record.longest_seconds is not None:
        lines.append(
            f"- for audio of at most {record.longest_seconds:g} s: longer audio is one window "
            "here, and several where `ser predict` computes it"
        )

    lines += ["", "```python", *example(record), "```", ""]
    lines.append(
        "`model.onnx` holds all that stands between input and outputs, z-scores included. "
        "`model.safetensors` holds the trained weights alone, for `ser predict FOLDER`."
    )
    return "\n".join(lines)


def _predict_command(predictor: Predictor) -> str:
    """How to predict with the folder."""
    words = ["ser predict FOLDER"]
    if predictor.fusion.unit == "dialogue":
        words.append("--table turns.csv")
    else:
        if "audio" in predictor.fusion.inputs:
            words.append("speech.wav")
        if "text" in predictor.fusion.inputs:
            words.append('--text "what is said"')
    return " ".join(words)


def _what_to_install(predictor: Predictor) -> str:
    """What has to be installed for `ser predict`."""
    package = predictor.run.config.provenance.package
    if package is None:
        return "ser"
    return f"ser with the package {plain(package)}, which brings the fusion"


def example(record: ExportRecord) -> list[str]:
    """A short script for onnxruntime."""
    lines = ["import numpy as np", "import onnxruntime"]
    if record.inputs[0].name == "waveform":
        lines += [
            "import soundfile",
            "",
            'samples, rate = soundfile.read("speech.wav", dtype="float32", always_2d=True)',
            "assert rate == 16000  # resample it otherwise",
            'inputs = {"waveform": samples.mean(1)[None]}',
        ]
    else:
        lines += ["", "inputs = {"]
        for graph_input in record.inputs:
            axes = [axis if isinstance(axis, int) else 10 for axis in graph_input.shape]
            name = json.dumps(graph_input.name)
            lines.append(f"    {name}: np.zeros({axes}, np.{graph_input.dtype}),")
        lines.append("}")
    outputs = ", ".join(record.outputs)
    if len(record.outputs) == 1:
        outputs = f"[{outputs}]"
    lines.append('session = onnxruntime.InferenceSession("model.onnx")')
    lines.append(f"{outputs} = session.run(None, inputs)")
    return lines


def features(record: ExportRecord) -> str:
    """How each input is made."""
    lines = ["## How the inputs are made", ""]
    for graph_input in record.inputs:
        description = plain(graph_input.description)
        lines.append(f"- `{graph_input.name}` {_shape(graph_input)}: {description}.")
    return "\n".join(lines)


def licences(predictor: Predictor) -> str:
    """What is known of licences, and what is not."""
    corpus = plain(predictor.run.config.corpus)
    encoders: list[str] = []
    extractors: set[str] = set()
    for of_modality in predictor.features.values():
        for feature in of_modality:
            extractors.add(feature.spec.extractor)
            model = feature.spec.provenance.get("model")
            if model and model not in encoders:
                encoders.append(model)

    text = (
        "## Licences\n\nser is under Apache-2.0. The weights were learnt from "
        f"{corpus}: its licence says what may be done with them"
    )
    if encoders:
        text += f", and so do those of the encoders ({plain(', '.join(encoders))})"
    if "smile" in extractors:
        text += "; openSMILE and its features are for research and non-commercial use"
    return (
        f"{text}. Nobody has chosen a licence for these weights yet: choose one that they allow "
        "before you publish this folder."
    )


def _shape(graph_input: InputRecord) -> str:
    """The axes in brackets, each a size or what is counted."""
    return f"[{', '.join(str(axis) for axis in graph_input.shape)}]"
