"""New speech gets the numbers that the store has, or a refusal."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from ser.cache.errors import WrongUse
from ser.cache.store import open_store
from ser.extract.direct import Direct, wanted_again
from ser.extract.passes import Rows, Unusable
from ser.extract.run import Request, extract, plan
from ser.weights.random import write_random_checkpoint


def test_what_is_computed_anew_equals_what_is_stored(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    audio = [tmp_path / f"{number}.wav" for number in range(2)]
    for path in audio:
        sf.write(path, rng.normal(0, 0.1, 20000), 16000)
    (tmp_path / "corpus.csv").write_text("id,audio,text\na,0.wav,hello you\nb,1.wav,why\n")
    models = {name: str(write_random_checkpoint(tmp_path / name, name, words=["hello"])) for name in ("hubert", "bert")}
    features = "hubert:layer=1,bert,is13,logmel"
    extract(plan(Request(tmp_path / "corpus.csv", features, store=tmp_path / "store", models=models)))
    store = open_store(tmp_path / "store")
    direct = Direct()
    for feature in store.features():
        again = wanted_again(feature.spec, models)
        rows, warnings = direct.rows(again, audio[0] if feature.spec.modality == "audio" else "hello you")
        assert isinstance(rows, Rows) and not warnings
        assert np.array_equal(rows.values.squeeze(), feature["a"].squeeze())
    (tmp_path / "cut.wav").write_bytes(audio[0].read_bytes()[:9000])
    cut, _ = direct.rows(wanted_again(store.feature("is13").spec), tmp_path / "cut.wav")
    assert isinstance(cut, Unusable) and "cut short" in str(cut)

    other = write_random_checkpoint(tmp_path / "other", "hubert", seed=1)
    with pytest.raises(WrongUse, match=r"checkpoint.*--model hubert=PATH"):
        wanted_again(store.feature("hubert:layer=1").spec, {"hubert": str(other)})
    with pytest.raises(WrongUse, match="differs in version"):
        wanted_again(replace(store.feature("is13").spec, version=0))
    with pytest.raises(WrongUse, match="imported"):
        wanted_again(replace(store.feature("is13").spec, feature="gemaps"))
