"""Real files that lie, each decoded by soundfile: the right result, a warning, or a reason."""

import errno
import hashlib
import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile as sf

from ser.errors import CorpusError, UtteranceError
from ser.extract.audio import Clip, decode
from ser.extract.corpora.probe import probe
from ser.extract.flac import held_samples

RATE = 16000


def tone(
    seconds: float = 1.0, rate: int = RATE, level: float = 0.3, frequency: float = 220.0
) -> np.ndarray:
    times = np.arange(int(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


def write_audio(path: Path, samples: np.ndarray, rate: int = RATE, **encoding: str) -> Path:
    sf.write(path, samples, rate, **encoding)
    return path


def audio_bytes(samples: np.ndarray, rate: int = RATE, **encoding: str) -> bytes:
    """The content of a file with these samples."""
    file = io.BytesIO()
    sf.write(file, samples, rate, **{"format": "WAV", **encoding})
    return file.getvalue()


def peak_frequency(samples: np.ndarray) -> float:
    """The loudest frequency of the first second, in Hz."""
    first_second = samples[:RATE]
    return float(np.abs(np.fft.rfft(first_second)).argmax() * RATE / len(first_second))


def warns(clip: Clip, text: str) -> bool:
    return any(text in warning for warning in clip.warnings)


def refusal(path: Path) -> str:
    """Why the file cannot be used, which the scan knows too unless only a decoder can."""
    with pytest.raises(UtteranceError) as fault:
        decode(path)

    reason = str(fault.value)
    assert reason
    assert "\n" not in reason

    known_to_scan = probe(path).fault
    if known_to_scan is not None:
        assert str(known_to_scan) in reason
    return reason


def test_sixteen_bit_is_exact(tmp_path: Path) -> None:
    steps = np.array([-32768, -1, 0, 1, 32767], np.int16).repeat(100)
    clip = decode(write_audio(tmp_path / "a.wav", steps))

    assert clip.samples.dtype == np.float32
    assert clip.warnings == []
    assert np.array_equal(clip.samples * 32768, steps)


@pytest.mark.parametrize(
    ("encoding", "exact"),
    [
        pytest.param({"subtype": "PCM_24"}, 1e-6, id="24 bits"),
        pytest.param({"subtype": "FLOAT"}, 1e-6, id="float"),
        pytest.param({"subtype": "DOUBLE"}, 1e-6, id="double"),
        pytest.param({"subtype": "PCM_32"}, 1e-6, id="32 bits"),
        pytest.param({"format": "WAVEX", "subtype": "PCM_16"}, 1e-4, id="WAVEX"),
        pytest.param({"format": "RF64", "subtype": "PCM_16"}, 1e-4, id="RF64"),
        pytest.param({"subtype": "ULAW"}, 0.02, id="mu-law"),
        pytest.param({"subtype": "IMA_ADPCM"}, None, id="ADPCM"),
        pytest.param({"format": "FLAC"}, 1e-4, id="FLAC"),
        pytest.param({"format": "NIST"}, 1e-4, id="NIST"),
        # These may pad and are not exact.
        pytest.param({"format": "OGG"}, None, id="Ogg"),
        pytest.param({"format": "MP3"}, None, id="MP3"),
    ],
)
def test_other_formats_under_a_wav_name(
    tmp_path: Path, encoding: dict[str, str], exact: float | None
) -> None:
    path = write_audio(tmp_path / "a.wav", tone(), **{"format": "WAV", **encoding})

    probed = probe(path)
    assert probed.fault is None
    assert probed.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert probed.duration == pytest.approx(len(sf.read(path)[0]) / RATE, abs=1e-9)

    clip = decode(path)
    assert clip.warnings == []
    assert abs(peak_frequency(clip.samples) - 220) < 3
    if exact is not None:
        assert np.abs(clip.samples[:RATE] - tone()).max() < exact


@pytest.mark.parametrize("rate", [8000, 44100, 96000])
def test_resampling_keeps_the_tone_and_the_length(tmp_path: Path, rate: int) -> None:
    clip = decode(write_audio(tmp_path / "a.wav", tone(rate=rate), rate))
    assert warns(clip, "8000 Hz") == (rate == 8000)

    samples = clip.at(RATE)
    assert samples.dtype == np.float32
    assert abs(len(samples) - RATE) <= 1

    middle = slice(RATE // 4, 3 * RATE // 4)
    assert np.abs(samples[middle] - tone()[middle]).max() < 2e-3


def test_resampling_does_not_alias(tmp_path: Path) -> None:
    # Above 8 kHz: it must vanish.
    high = tone(rate=44100, frequency=11000)
    clip = decode(write_audio(tmp_path / "a.wav", high, 44100))
    assert np.abs(clip.at(RATE)[1000:-1000]).max() < 1e-3


@pytest.mark.parametrize(
    ("left", "right", "mono", "warning"),
    [
        pytest.param(1.0, 0.0, 0.5, "2 channels", id="the mean"),
        pytest.param(0.9, -1.0, -1.0, "cancel", id="the loudest channel"),
    ],
)
def test_stereo(tmp_path: Path, left: float, right: float, mono: float, warning: str) -> None:
    channels = np.stack([left * tone(), right * tone()], axis=1)
    clip = decode(write_audio(tmp_path / "a.wav", channels))

    assert np.abs(clip.samples - mono * tone()).max() < 1e-4
    assert warns(clip, warning)


def test_full_scale_silence_and_dc_warn(tmp_path: Path) -> None:
    loud = decode(write_audio(tmp_path / "loud.wav", 4 * tone(), subtype="FLOAT"))
    assert warns(loud, "full scale")
    assert loud.samples.max() > 1

    silent = decode(write_audio(tmp_path / "silent.wav", np.zeros(RATE, np.float32)))
    assert silent.warnings == ["silent"]

    constant = decode(write_audio(tmp_path / "dc.wav", np.full(RATE, 0.5, np.float32)))
    assert constant.warnings == ["constant (DC) samples"]


@pytest.mark.parametrize("kind", ["AIFF", "AU", "RF64", "W64", "SVX"])
def test_a_file_that_holds_less_than_its_header_says_is_refused(tmp_path: Path, kind: str) -> None:
    path = write_audio(tmp_path / "a.wav", tone()[:-1], format=kind, subtype="PCM_16")
    whole = path.read_bytes()

    for trailer in (b"", b"x", b"behind its end"):
        path.write_bytes(whole + trailer)
        # Of W64, libsndfile takes what follows for samples.
        assert RATE - 1 <= len(decode(path).samples) < RATE + 7

    for length in (len(whole) - 2, len(whole) // 2):
        path.write_bytes(whole[:length])
        assert "is cut short: its" in refusal(path)


def test_length_that_a_pipe_could_not_know(tmp_path: Path) -> None:
    """As sox writes it: the largest length of the file, and of its samples."""
    path = write_audio(tmp_path / "a.aiff", tone(), subtype="PCM_16")
    content = bytearray(path.read_bytes())
    length_of_samples = content.index(b"SSND") + 4

    content[4:8] = b"\x7f\0\0\x2e"
    content[length_of_samples : length_of_samples + 4] = b"\x7f\0\0\x08"
    path.write_bytes(content)
    assert len(decode(path).samples) == RATE


def with_length(content: bytes, name: bytes, form: str, length: int, skip: int = 0) -> bytes:
    """A file whose header says another length, in this form, `skip` bytes after a name."""
    altered = bytearray(content)
    struct.pack_into(form, altered, content.index(name) + len(name) + skip, length)
    return bytes(altered)


def wav(length: int, rest: bytes = b"") -> bytes:
    """A second of sound in a WAV file whose header says that its samples take `length` bytes."""
    return with_length(audio_bytes(tone()), b"data", "<I", length) + rest


def flac(count: int) -> bytes:
    """Five seconds of sound in a FLAC file whose header says that they are `count` samples."""
    content = bytearray(audio_bytes(tone(5), format="FLAC"))
    fields = int.from_bytes(content[21:26], "big") >> 36 << 36
    content[21:26] = (fields | count).to_bytes(5, "big")
    return bytes(content)


LIST = b"LIST" + struct.pack("<I", 4) + b"INFO"
AU = audio_bytes(tone(), format="AU", subtype="PCM_16")
AIFF = audio_bytes(tone(), format="AIFF", subtype="PCM_16")
CAF_FILE = audio_bytes(tone(), format="CAF", subtype="PCM_16")
RF64 = audio_bytes(tone(), format="RF64", subtype="PCM_16")
RIFX = audio_bytes(tone(), endian="BIG", subtype="PCM_16")
GSM = audio_bytes(tone(), subtype="GSM610")


@pytest.mark.parametrize(
    ("content", "uncounted", "trailing"),
    [
        pytest.param(wav(3200), 28800, 0, id="a tenth of it"),
        pytest.param(wav(3201), 28798, 0, id="an odd length, padded"),
        pytest.param(wav(0), 0, 0, id="pipe: 0"),
        pytest.param(wav(0x7FFFF000), 0, 0, id="pipe: less than 2 GB"),
        pytest.param(wav(0x7FFFFFFF), 0, 0, id="pipe: 2 GB less one"),
        pytest.param(wav(0x80000000), 0, 0, id="pipe: 2 GB"),
        pytest.param(wav(0xFFFFFFFF), 0, 0, id="pipe: 4 GB"),
        pytest.param(wav(3200, LIST), 28800, 0, id="a tenth of it, and a chunk"),
        pytest.param(wav(0xFFFFFFFF, LIST), 0, 0, id="pipe: 4 GB, and a chunk"),
        pytest.param(wav(32000, LIST), 0, 0, id="a chunk after it"),
        pytest.param(wav(32000, LIST[:-2]), 0, 0, id="a chunk that is cut"),
        pytest.param(wav(32000, b"TAG" + bytes(125)), 0, 128, id="an ID3v1 tag"),
        pytest.param(wav(32000, b"ID3" + bytes(4000)), 0, 4003, id="a large ID3v2 tag"),
        pytest.param(wav(32000, b"x"), 0, 1, id="a byte"),
        pytest.param(with_length(AU, b".snd", ">I", 3200, 4), 28800, 0, id="AU"),
        pytest.param(with_length(AU, b".snd", ">I", 0xFFFFFFFF, 4), 0, 0, id="AU from a pipe"),
        pytest.param(with_length(AIFF, b"SSND", ">I", 3208), 28800, 0, id="AIFF"),
        pytest.param(with_length(CAF_FILE, b"data", ">q", 3204), 28800, 0, id="CAF"),
        pytest.param(with_length(CAF_FILE, b"data", ">q", -1), 0, 0, id="CAF from a pipe"),
        pytest.param(with_length(RF64, b"ds64", "<Q", 3200, 12), 28800, 0, id="RF64"),
        pytest.param(with_length(RIFX, b"data", ">I", 3200), 28800, 0, id="RIFX"),
        pytest.param(with_length(GSM, b"data", "<I", 650), 2600, 0, id="GSM"),
        pytest.param(flac(1600), 78400, 0, id="FLAC"),
        pytest.param(flac(0), 0, 0, id="FLAC from a pipe"),
    ],
)
def test_a_header_that_counts_less_than_there_is_is_read_to_the_end(
    tmp_path: Path, content: bytes, uncounted: int, trailing: int
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    seconds = 5 if content[:4] == b"fLaC" else 1

    clip = decode(path)
    assert len(clip.samples) == seconds * RATE
    assert abs(peak_frequency(clip.samples) - 220) < 3
    assert warns(clip, "counts fewer samples") == bool(uncounted)
    assert warns(clip, "no audio follow") == bool(trailing)

    probed = probe(path)
    assert probed.duration == seconds
    assert probed.header is not None
    assert (probed.header.uncounted, probed.header.trailing) == (uncounted, trailing)

    # The scan has told it of all files, once.
    digest = hashlib.sha256(content).hexdigest()
    assert decode(path, digest).warnings == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(wav(32002), "its data chunk says 32002 bytes", id="WAV"),
        pytest.param(RIFX[:-2], "is cut short", id="RIFX"),
        pytest.param(RF64[:-2], "is cut short", id="RF64"),
        pytest.param(flac(80001), "the header says 80001 samples, the file holds 80000", id="FLAC"),
        pytest.param(flac(0)[:-9], "last frame is not whole", id="FLAC from a pipe, cut"),
        pytest.param(flac(1 << 35), "more than its", id="FLAC of many hours"),
        pytest.param(
            with_length(audio_bytes(np.zeros(0, np.int16)) + LIST, b"data", "<I", 0),
            "holds no samples",
            id="no samples, and a chunk",
        ),
    ],
)
def test_a_header_that_counts_more_than_there_is_is_refused(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    assert reason in refusal(path)


@pytest.mark.parametrize("length", [1, 16, 300, 4096, 4097, 70_000])
def test_flac_of_any_length_ends_with_its_last_frame(length: int) -> None:
    assert held_samples(audio_bytes(tone(5)[:length], format="FLAC")) == length


@pytest.mark.parametrize(
    ("kind", "coding"),
    [
        ("WAV", "GSM610"),
        ("AIFF", "GSM610"),
        ("W64", "GSM610"),
        ("WAV", "G721_32"),
        ("AU", "G721_32"),
        ("AU", "G723_24"),
        ("WAV", "NMS_ADPCM_16"),
    ],
)
def test_codings_that_cannot_seek_are_read_from_their_start(
    tmp_path: Path, kind: str, coding: str
) -> None:
    path = write_audio(tmp_path / "a.wav", tone(), format=kind, subtype=coding)
    clip = decode(path)
    assert clip.seconds == probe(path).duration
    assert RATE <= len(clip.samples) <= RATE + 80
    assert abs(peak_frequency(clip.samples) - 220) < 3


def test_memory_that_runs_out_anywhere_in_decoding_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of 37 minutes of silence at 400 kHz, which are 3.4 MB of FLAC."""
    path = write_audio(tmp_path / "a.wav", tone())
    monkeypatch.setattr("ser.extract.audio._note_oddities", Mock(side_effect=MemoryError))
    with pytest.raises(CorpusError, match=f"{path}: memory ran out"):
        decode(path)


NOISE = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
FLAC = audio_bytes(NOISE, format="FLAC")
OGG = audio_bytes(NOISE, format="OGG")

# With all the 36 bits of STREAMINFO's total number of samples.
HUGE = FLAC[:21] + bytes([FLAC[21] | 0x0F]) + b"\xff" * 4 + FLAC[26:]


def tone_that_ends_in(value: float) -> bytes:
    return audio_bytes(np.append(tone(), value), subtype="FLOAT")


# The ids are words: bytes of a generated Ogg file differ from process to process, and xdist wants
# the same ids in all.
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(tone_that_ends_in(np.nan), "NaN or", id="NaN"),
        pytest.param(tone_that_ends_in(np.inf), "NaN or", id="infinity"),
        pytest.param(tone_that_ends_in(-np.inf), "NaN or", id="minus infinity"),
        pytest.param(
            audio_bytes(np.zeros(3700 * 100, np.int16), 100), "over an hour", id="over an hour"
        ),
        pytest.param(
            HUGE,
            "has 68719476735 samples by its header, more than",
            id="over an hour by its header",
        ),
        pytest.param(FLAC[: -len(FLAC) // 3], "", id="FLAC cut short"),
        pytest.param(OGG[: -len(OGG) // 3], "", id="Ogg cut short"),
        pytest.param(
            audio_bytes(NOISE, format="NIST")[:-2],
            "is cut short: the header says 16000 samples, the file holds 15999",
            id="NIST cut short",
        ),
        pytest.param(audio_bytes(np.zeros(0, np.float32)), "no samples", id="no samples"),
        pytest.param(b"", "is empty", id="no bytes"),
        pytest.param(b"<!DOCTYPE html><html></html>", "HTML", id="HTML"),
        pytest.param(b"\n <html>", "HTML", id="HTML after a blank line"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "git lfs pull",
            id="a pointer of Git LFS",
        ),
        pytest.param(
            b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n",
            "cannot be decoded",
            id="NIST with shorten",
        ),
        pytest.param(
            b"RIFF\x00\x00\x00\x00WAVE", "without a data chunk", id="WAV without a data chunk"
        ),
        pytest.param(b"\x17", "cannot be decoded", id="one byte"),
        pytest.param(b"\x00" * 5000, "cannot be decoded", id="zeros"),
        pytest.param(b"RIFF", "cannot be decoded", id="RIFF alone"),
        pytest.param(
            b"RIFF\x24\x00\x00\x00WAVEdata\x00\x00\x00\x00",
            "cannot be decoded",
            id="WAV without a format",
        ),
    ],
)
def test_what_is_not_audio_cut_short_or_not_finite_is_refused(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    assert reason in refusal(path)

    probed = probe(path)
    if content:
        assert probed.sha256 == hashlib.sha256(content).hexdigest()
    else:
        assert probed.sha256 is None
    assert (probed.duration is None) == (probed.fault is not None)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "directory"),
        ("fifo", "pipe"),
        ("null", "device"),
        ("loop", "symbolic links"),
        ("none", "No such file"),
    ],
)
def test_not_a_file(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder.wav").mkdir()
    # Nobody waits for a writer.
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "null.wav").symlink_to("/dev/zero")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")

    path = tmp_path / f"{name}.wav"
    assert reason in refusal(path)
    assert probe(path).sha256 is None


def change_last_byte(path: Path) -> None:
    """Change a file, and neither its size nor its time."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(change_last_byte, "changed", id="another byte"),
        pytest.param(make_empty, "is empty", id="emptied"),
        pytest.param(Path.unlink, "No such file", id="removed"),
    ],
)
def test_changed_while_running(tmp_path: Path, change: Callable[[Path], None], reason: str) -> None:
    path = write_audio(tmp_path / "a.wav", tone())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert isinstance(decode(path, digest), Clip)

    change(path)
    with pytest.raises(CorpusError, match=f"{path}: .*{reason}.*run again") as fault:
        decode(path, digest)
    assert not isinstance(fault.value, UtteranceError), "the bytes that were read are not at fault"


@pytest.mark.parametrize("read", [decode, probe])
@pytest.mark.parametrize("code", ["EIO", "EACCES", "ENOTCONN", "ESTALE", "EMFILE", "ENOMEM"])
def test_a_fault_of_the_disk_is_none_of_the_audio(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    read: Callable[[Path], object],
) -> None:
    path = write_audio(tmp_path / "a.wav", tone())
    number = getattr(errno, code)
    monkeypatch.setattr(os, "open", Mock(side_effect=OSError(number, os.strerror(number))))

    reason = f"{path}: cannot be read .*{os.strerror(number)}"
    with pytest.raises(CorpusError, match=reason) as fault:
        read(path)
    assert not isinstance(fault.value, UtteranceError)
