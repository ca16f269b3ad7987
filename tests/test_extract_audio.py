"""Real files that lie, each decoded by soundfile: the right result, a warning, or a reason."""

import errno
import hashlib
import io
import os
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile as sf

from ser.errors import CorpusError, UtteranceError
from ser.extract.audio import Clip, decode
from ser.extract.corpora.measure import probe

RATE = 16000


def tone(
    seconds: float = 1.0, rate: int = RATE, level: float = 0.3, frequency: float = 220.0
) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(
        np.float32
    )


def wav(path: Path, samples: np.ndarray, rate: int = RATE, **how: str) -> Path:
    sf.write(path, samples, rate, **how)
    return path


def reason(path: Path) -> str:
    """Why it cannot be used, which the scan knows too unless only a decoder can."""
    with pytest.raises(UtteranceError) as fault:
        decode(path)
    text = str(fault.value)
    assert "\n" not in text and text and str(probe(path).fault) in (text, "None")
    return text


def test_sixteen_bit_is_exact(tmp_path: Path) -> None:
    steps = np.array([-32768, -1, 0, 1, 32767], np.int16).repeat(100)
    clip = decode(wav(tmp_path / "a.wav", steps))
    assert clip.samples.dtype == np.float32 and clip.warnings == []
    assert np.array_equal(clip.samples * 32768, steps)


@pytest.mark.parametrize(
    ("how", "exact"),
    [
        *[({"subtype": name}, 1e-6) for name in ("PCM_24", "FLOAT", "DOUBLE", "PCM_32")],
        *[({"format": name, "subtype": "PCM_16"}, 1e-4) for name in ("WAVEX", "RF64")],
        ({"subtype": "ULAW"}, 0.02),
        ({"subtype": "IMA_ADPCM"}, None),
        *[({"format": name}, 1e-4) for name in ("FLAC", "NIST")],
        *[({"format": name}, None) for name in ("OGG", "MP3")],  # they may pad and are not exact
    ],
)
def test_other_formats_under_a_wav_name(
    tmp_path: Path, how: dict[str, str], exact: float | None
) -> None:
    path = wav(tmp_path / "a.wav", tone(), **{"format": "WAV", **how})
    clip = decode(path)
    assert clip.warnings == []
    probed = probe(path)
    assert probed.fault is None
    assert probed.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert probed.duration == pytest.approx(len(sf.read(path)[0]) / RATE, abs=1e-9)
    if exact is not None:
        assert np.abs(clip.samples[:RATE] - tone()).max() < exact
    peak = np.abs(np.fft.rfft(clip.samples[:RATE])).argmax() / (min(len(clip.samples), RATE) / RATE)
    assert abs(peak - 220) < 3


@pytest.mark.parametrize("rate", [8000, 44100, 96000])
def test_resampling_keeps_the_tone_and_the_length(tmp_path: Path, rate: int) -> None:
    clip = decode(wav(tmp_path / "a.wav", tone(rate=rate), rate))
    samples = clip.at(RATE)
    assert samples.dtype == np.float32 and abs(len(samples) - RATE) <= 1
    middle = slice(RATE // 4, 3 * RATE // 4)
    assert np.abs(samples[middle] - tone()[middle]).max() < 2e-3
    assert any("8000 Hz" in warning for warning in clip.warnings) == (rate == 8000)


def test_resampling_does_not_alias(tmp_path: Path) -> None:
    clip = decode(
        wav(tmp_path / "a.wav", tone(rate=44100, frequency=11000), 44100)
    )  # above 8 kHz: must vanish
    assert np.abs(clip.at(RATE)[1000:-1000]).max() < 1e-3


@pytest.mark.parametrize(
    ("left", "right", "mono", "warned"),
    [(1.0, 0.0, 0.5, "2 channels"), (0.9, -1.0, -1.0, "cancel")],  # the mean; the loudest channel
)
def test_stereo(tmp_path: Path, left: float, right: float, mono: float, warned: str) -> None:
    clip = decode(wav(tmp_path / "a.wav", np.stack([left * tone(), right * tone()], 1)))
    assert np.abs(clip.samples - mono * tone()).max() < 1e-4 and any(
        warned in warning for warning in clip.warnings
    )


def test_full_scale_silence_and_dc_warn(tmp_path: Path) -> None:
    loud = decode(wav(tmp_path / "l.wav", 4 * tone(), subtype="FLOAT"))
    assert any("full scale" in warning for warning in loud.warnings) and loud.samples.max() > 1
    assert decode(wav(tmp_path / "s.wav", np.zeros(RATE, np.float32))).warnings == ["silent"]
    assert decode(wav(tmp_path / "d.wav", np.full(RATE, 0.5, np.float32))).warnings == [
        "constant (DC) samples"
    ]


@pytest.mark.parametrize("kind", ["AIFF", "AU", "RF64", "W64", "SVX"])
def test_a_file_that_holds_less_than_its_header_says_is_refused(tmp_path: Path, kind: str) -> None:
    path = wav(tmp_path / "a.wav", tone()[:-1], format=kind, subtype="PCM_16")
    whole = path.read_bytes()
    for more in (b"", b"x", b"behind its end"):
        path.write_bytes(whole + more)
        assert (
            RATE - 1 <= len(decode(path).samples) < RATE + 7
        )  # of W64 libsndfile takes what follows for samples
    for length in (len(whole) - 2, len(whole) // 2):
        path.write_bytes(whole[:length])
        assert "is cut short: its header says" in reason(path)


def test_length_that_a_pipe_could_not_know(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.aiff", tone(), subtype="PCM_16")
    whole = path.read_bytes()
    data = whole.index(b"SSND") + 4
    path.write_bytes(
        whole[:4] + b"\x7f\0\0\x2e" + whole[8:data] + b"\x7f\0\0\x08" + whole[data + 4 :]
    )  # as sox does
    assert len(decode(path).samples) == RATE


def content(samples: np.ndarray, rate: int = RATE, **how: str) -> bytes:
    """Of a file with these samples."""
    file = io.BytesIO()
    sf.write(file, samples, rate, **{"format": "WAV", **how})
    return file.getvalue()


NOISE = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
FLAC, OGG = content(NOISE, format="FLAC"), content(NOISE, format="OGG")
# With all the 36 bits of STREAMINFO's total number of samples.
HUGE = FLAC[:21] + bytes([FLAC[21] | 0x0F]) + b"\xff" * 4 + FLAC[26:]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        *(
            (content(np.append(tone(), value), subtype="FLOAT"), "NaN or")
            for value in (np.nan, np.inf, -np.inf)
        ),
        (content(np.zeros(3700 * 100, np.int16), 100), "over an hour"),
        (HUGE, "has 68719476735 samples by its header, over an hour"),
        (FLAC[: -len(FLAC) // 3], ""),
        (OGG[: -len(OGG) // 3], ""),
        (
            content(NOISE, format="NIST")[:-2],
            "is cut short: the header says 16000 samples, the file holds 15999",
        ),
        (content(np.zeros(0, np.float32)), "no samples"),
        (b"", "is empty"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"\n <html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (
            b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n",
            "cannot be decoded",
        ),
        (b"RIFF\x00\x00\x00\x00WAVE", "without a data chunk"),
        (b"\x17", "cannot be decoded"),
        (b"\x00" * 5000, "cannot be decoded"),
        (b"RIFF", "cannot be decoded"),
        (b"RIFF\x24\x00\x00\x00WAVEdata\x00\x00\x00\x00", "cannot be decoded"),
    ],
)
def test_what_is_not_audio_cut_short_or_not_finite_is_refused(
    tmp_path: Path, data: bytes, said: str
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    assert said in reason(path)
    probed = probe(path)
    assert probed.sha256 == (hashlib.sha256(data).hexdigest() if data else None)
    assert (probed.duration is None) == (probed.fault is not None)


def test_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "fifo.wav")  # nobody waits for a writer
    (tmp_path / "null.wav").symlink_to("/dev/zero")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    kinds = {
        "folder": "directory",
        "fifo": "pipe",
        "null": "device",
        "loop": "symbolic links",
        "none": "No such file",
    }
    for name, said in kinds.items():
        path = tmp_path / f"{name}.wav"
        assert said in reason(path) and probe(path).sha256 is None


def test_changed_while_running(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", tone())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert isinstance(decode(path, digest), Clip)
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time
    for harm, said in (
        (None, "changed"),
        (lambda: path.write_bytes(b""), "is empty"),
        (path.unlink, "No such file"),
    ):
        if harm:
            harm()
        with pytest.raises(CorpusError, match=f"{path}: .*{said}.*run again") as fault:
            decode(path, digest)
        assert not isinstance(fault.value, UtteranceError), (
            "the bytes that were read are not at fault"
        )


@pytest.mark.parametrize(
    "code", [errno.EIO, errno.EACCES, errno.ENOTCONN, errno.ESTALE, errno.EMFILE, errno.ENOMEM]
)
def test_a_fault_of_the_disk_is_none_of_the_audio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = wav(tmp_path / "a.wav", tone())
    monkeypatch.setattr(os, "open", Mock(side_effect=OSError(code, os.strerror(code))))
    for read in (decode, probe):
        with pytest.raises(
            CorpusError, match=f"{path}: cannot be read .*{os.strerror(code)}"
        ) as fault:
            read(path)
        assert not isinstance(fault.value, UtteranceError)
