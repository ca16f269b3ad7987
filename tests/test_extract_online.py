"""New speech gets the numbers that the store has, or a refusal."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ser.cache.store import open_store
from ser.errors import UtteranceError, WrongUse
from ser.extract.online import OnlineExtractor, resolve_again
from ser.tests.stand_in_corpus import run, write_corpus
from ser.weights.demo import write_random_checkpoint


def test_what_is_computed_anew_equals_what_is_stored(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ["hello you", "why"])
    audio = corpus.parent / "0.wav"
    models = {name: str(write_random_checkpoint(tmp_path / name, name, words=["hello"])) for name in ("hubert", "bert")}
    run(corpus, tmp_path / "store", "hubert:layer=1,bert,is13,logmel", models=models)
    store = open_store(tmp_path / "store")
    direct = OnlineExtractor()
    for feature in store.features():
        again = resolve_again(feature.spec, models)
        found, warnings = direct.rows([again], audio if feature.spec.modality == "audio" else "hello you")
        assert not isinstance(found, UtteranceError) and not warnings
        [rows] = found
        assert np.array_equal(rows.values.squeeze(), feature["u000"].squeeze())
    (tmp_path / "cut.wav").write_bytes(audio.read_bytes()[:9000])
    cut, _ = direct.rows([resolve_again(store.feature("is13").spec)], tmp_path / "cut.wav")
    assert isinstance(cut, UtteranceError) and "cut short" in str(cut)

    other = write_random_checkpoint(tmp_path / "other", "hubert", seed=1)
    with pytest.raises(WrongUse, match=r"checkpoint.*--model hubert=PATH"):
        resolve_again(store.feature("hubert:layer=1").spec, {"hubert": str(other)})
    with pytest.raises(WrongUse, match="differs in version"):
        resolve_again(replace(store.feature("is13").spec, version=0))
    with pytest.raises(WrongUse, match="imported from a file, and cannot be computed for new speech"):
        resolve_again(replace(store.feature("is13").spec, feature="gemaps", extractor="import"))
