"""Does a rewrite change what ser does? The same commands by two checkouts, side by side.

    python -m benchmarks.unchanged OLD [NEW] [--only train,report] [--work FOLDER] [--emodb FOLDER]

OLD and NEW (by default this one) are checkouts with a `.venv` each. OLD runs each command once for
all comparisons in the same folder. Every command runs in a folder
of its own for each of them, on a small demo corpus; then what it printed and every file it wrote is
compared, byte for byte, but for what differs between two runs of the same code: times, dates,
provenance, and the checksums that follow from these. Exit code 1 if anything differs.

Parts: help (--help and --settings of everything), mistakes (sentences and exit codes), corpus,
features (stores in both formats), cache, train (run folders of all fusions), report, predict.
`--emodb` adds openSMILE's features of real speech (../shared/data/emodb), which is not copied.
"""

import argparse
import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("help", "mistakes", "corpus", "features", "cache", "train", "report", "predict")

# A seconds' value, a date, a folder of the machine or a version of a library: what two runs of the
# same code do not share.
VARIES = [
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(\+00:00|Z)?", "<date>"),
    (r"\d+ min \d+ s|\d+ h \d+ min", "<time>"),
    (r"\b\d+(\.\d+)?(e[-+]?\d+)? (s|ms|min|minutes|seconds|MB/s|kB/s)\b", "<time>"),
    (r"seconds \d+(\.\d+)?", "seconds <time>"),
    (r'"seconds": [\d.e-]+', '"seconds": <time>'),
    (r"\b[0-9a-f]{64}\b", "<sha256>"),
    # The folder that a run's provenance names.
    (r"\S*/(old|new)/features", "<here>/features"),
    (r"\d+(\.\d+)? GB/s", "<speed>"),
    (r"\d+(\.\d+)? GB free", "<room> free"),
    (r"\d+(\.\d+)?× real time; limited by \S+;", "<speed>"),
    # The seconds of a feature, in the last column of `ser features`.
    (r"(?m)^(\S+( +\d+){4} +)\d+(\.\d+)?$", r"\1<time>"),
    # Progress bars.
    (r"(?m)^.*(\d%\||it/s\]).*\n", ""),
]

# Keys of JSON records that say when, where and by what a file was made, or that hash such a file.
PROVENANCE = {
    "provenance",
    "written_by",
    "seconds",
    "sha256",
    "created",
    "command",
    "date",
    "files",
    "bytes",
}

HELP = [
    ["--help"],
    *(
        [*command.split(), "--help"]
        for command in (
            "cache",
            "cache export",
            "cache import",
            "cache info",
            "cache list",
            "cache pull",
            "cache push",
            "cache remove",
            "cache rollback",
            "cache verify",
            "corpus",
            "corpus demo",
            "corpus show",
            "demo",
            "doctor",
            "features",
            "predict",
            "report",
            "runs",
            "runs compare",
            "runs list",
            "runs prune",
            "runs remove",
            "sweep",
            "train",
            "weights",
            "weights convert",
            "weights demo",
            "weights list",
        )
    ),
    ["sweep", "--list"],
    ["sweep", "--list", "--json"],
]

VECTORS = "is13+bert"
FUSIONS = {
    "mit": "hubert+mpnet",
    "mit:no-encoder": "hubert+mpnet",
    "mit:no-selfatt": "hubert+mpnet",
    "concat": "hubert+mpnet",
    "concat:rmm": "hubert+mpnet",
    "concat:utterance": "is13+bert",
    "cnn": "logmel",
    "bert": "bert",
    "cnn+bert": "logmel+bert",
    "superb": "hubert:layers=all,pool=mean+logmel",
    "audio": "hubert",
    "audio:utterance": "is13",
    "text": "mpnet",
    "text:utterance": "bert",
    "bc-lstm": VECTORS,
    "catf-lstm": VECTORS,
    "lian": VECTORS,
    "dann": VECTORS,
    "consk-gcn:semantic": VECTORS,
    "dutta": VECTORS,
    "cma": "hubert+mpnet",
    "cme": "hubert+mpnet",
    "gban": "hubert+mpnet",
    "icon": VECTORS,
    "icon:audio": "is13",
    "icon:text": "bert",
    "ks-transformer": "hubert+mpnet",
    **{
        f"{when}-{how}": VECTORS
        for when in ("ef", "mf", "lf", "lgf")
        for how in ("add", "concat", "at")
    },
}
SMALL = {"d_model": 16, "heads": 2, "queries": 3, "channels": 2, "frames": 50, "lr": 1e-3}

# Further runs: a name, features, fusion, and what else is said on the command line.
MORE_RUNS = {
    "seeds": (VECTORS, "lgf-add", "--seeds 2 --folds 2 --loss perspective"),
    "best-test": (VECTORS, "lgf-add", "--select best-test --protocol speaker-out --folds 2"),
    "vad": (VECTORS, "lgf-add", "--target vad"),
    "class+vad": ("hubert+mpnet", "mit", "--target class+vad"),
    "distribution": (VECTORS, "lf-add", "--target distribution"),
    "weights": ("is13", "audio", "--set class_weights=effective --set focal_gamma=2"),
    "balanced": ("hubert+mpnet", "mit", "--set sampler=balanced --set patience=1 --epochs 4"),
    "refit": ("is13", "audio", "--set refit=true --labels 6class"),
    "random": ("bert", "text:utterance", "--protocol random-70-20-10 --select last"),
    "finetuned": ("bert", "bert", "--set finetune_text=all"),
    "layers": ("hubert:layers=1-2,hop=0.1", "audio", ""),
    "meanstd": ("hubert:pool=meanstd+bert", "lgf-concat", "--set soft_labels=true"),
    "streamed": ("hubert+mpnet", "mit", "--memory 2MB"),
}

MISTAKES = [
    ["train", "--features", "hubert+mpnet", "--fusion", "mitt", "--store", "features"],
    ["train", "--features", "hubret", "--fusion", "audio", "--store", "features"],
    ["train", "--features", "hubert", "--fusion", "mit", "--store", "features"],
    ["train", "--features", "hubert", "--fusion", "audio", "--store", "nowhere"],
    ["train", "--features", "is13", "--fusion", "audio", "--store", "features", "--set", "lr=fast"],
    ["train", "--features", "is13", "--fusion", "audio", "--store", "features", "--set", "lrr=1"],
    [
        "train",
        "--features",
        "is13",
        "--fusion",
        "audio",
        "--store",
        "features",
        "--labels",
        "4clas",
    ],
    ["train", "--features", "is13", "--fusion", "audio", "--store", "features", "--folds", "0"],
    ["train", "--features", "is13", "--fusion", "audio", "--store", "features", "--seeds", "0"],
    ["train", "--features", "is13", "--fusion", "audio", "--store", "features", "--select", "x"],
    ["train", "--features", "is13", "--fusion", "audio", "--store", "features", "--protocol", "x"],
    ["features", "nowhere", "--store", "features"],
    ["features", "corpus", "--features", "hubertt", "--store", "features"],
    ["features", "corpus", "--features", "hubert:layer=99", "--store", "features"],
    ["features", "corpus", "--store", "features", "--dtype", "float8"],
    ["corpus", "show", "nowhere"],
    ["report", "nowhere"],
    ["predict", "nowhere", "x.wav"],
    ["sweep", "nothing-of-the-kind"],
    ["cache", "info", "nothing", "--store", "features"],
    ["cache", "verify", "--store", "nowhere"],
    ["cache", "remove", "nothing", "--store", "features"],
    ["cache", "import", "x", "nofile.npy", "--modality", "audio", "--store", "features"],
    ["weights", "convert", "nowhere", "out"],
    ["runs", "list", "nowhere"],
]


@dataclass(frozen=True)
class Checkout:
    """One of the two checkouts, and the folder that its commands run in."""

    name: str
    path: Path
    folder: Path
    remembers: bool = False
    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)

    def run(self, arguments: list[str]) -> str:
        """What a command of ser printed, and its exit code, without what varies.

        A checkout that `remembers` runs each command once, also for later comparisons.
        """
        self.counts[tuple(arguments)] += 1
        key = json.dumps([arguments, self.counts[tuple(arguments)]])
        memory = self.folder / ".printed" / hashlib.sha256(key.encode()).hexdigest()
        if self.remembers and memory.exists():
            return memory.read_text()
        printed = self.run_again(arguments)
        if self.remembers:
            memory.parent.mkdir(exist_ok=True)
            memory.write_text(printed)
        return printed

    def run_again(self, arguments: list[str]) -> str:
        """What a command of ser prints now."""
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "HF_HUB_OFFLINE": "1",
        }
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [str(self.path / ".venv/bin/python"), "-m", "ser", *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        errors = re.sub(r"[^\n]*\r", "", done.stderr)
        printed = "\n".join(
            [
                f"$ ser {' '.join(arguments)}",
                done.stdout,
                "-- stderr",
                errors,
                f"-- exit {done.returncode}",
            ]
        )
        return without_what_varies(
            printed.replace(str(self.folder), "<here>").replace(str(self.path), "<ser>")
        )


class Comparison:
    """Runs the commands by both checkouts and counts what differs."""

    def __init__(self, old: Checkout, new: Checkout) -> None:
        self.old = old
        self.new = new
        self.compared = 0
        self.differences: list[str] = []

    def command(self, *arguments: str) -> None:
        """Run one command in both, and compare what they print."""
        old = self.old.run(list(arguments))
        if self.new is not self.old:
            self.texts("ser " + " ".join(arguments), old, self.new.run(list(arguments)))

    def texts(self, what: str, old: str, new: str) -> None:
        """Compare two texts, and show the first lines that differ."""
        self.compared += 1
        if old == new:
            return
        lines = difflib.unified_diff(
            old.split("\n"), new.split("\n"), "old", "new", lineterm="", n=1
        )
        shown = "\n".join(f"    {line[:300]}" for line in list(lines)[:24])
        self.differences.append(what)
        print(f"DIFFERS: {what}\n{shown}", flush=True)

    def files(self, *folders: str) -> None:
        """Compare the files below these folders, by name and content."""
        for folder in folders:
            summaries = [
                dict(summarize(checkout.folder, folder)) for checkout in (self.old, self.new)
            ]
            names = sorted(summaries[0].keys() | summaries[1].keys())
            for name in names:
                old, new = (summary.get(name, "is not there") for summary in summaries)
                self.texts(name, old, new)


def without_what_varies(text: str) -> str:
    """The text with times, dates and checksums replaced."""
    for pattern, replacement in VARIES:
        text = re.sub(pattern, replacement, text)
    return text


def summarize(root: Path, folder: str) -> Iterator[tuple[str, str]]:
    """Each file below a folder by its path, and a text that is equal where its content is."""
    for path in sorted((root / folder).rglob("*")):
        in_folder = path.relative_to(root / folder)
        is_of_a_writer = "tmp" in in_folder.parts or path.name in ("lock", "log.jsonl")
        if path.is_file() and not is_of_a_writer:
            yield str(Path(folder) / in_folder), content(path)


def content(path: Path) -> str:
    """A file's content without provenance and what follows from it."""
    data = path.read_bytes()
    if path.suffix == ".json":
        return json.dumps(without_provenance(json.loads(data)), indent=1, ensure_ascii=False)
    if path.suffix == ".safetensors":
        return tensors(data)
    if path.name == "log" or path.suffix in (".csv", ".tex", ".md", ".txt"):
        return without_what_varies(data.decode(errors="replace"))
    if path.suffix == ".html":
        return page(data.decode())
    if path.suffix == ".npz":
        with numpy.load(path) as arrays:
            names = sorted(name for name in arrays if name != "about")
            data = b"".join(name.encode() + arrays[name].tobytes() for name in names)
    return hashlib.sha256(data).hexdigest()


def without_provenance(value: Any) -> Any:
    """A JSON value without the entries that say when, where and by what it was made."""
    if isinstance(value, dict):
        return {key: without_provenance(x) for key, x in value.items() if key not in PROVENANCE}
    if isinstance(value, list):
        return [without_provenance(x) for x in value]
    return value


def tensors(data: bytes) -> str:
    """The header of a safetensors file but for its seal, and the digest of its tensors."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    metadata = {key: value for key, value in metadata.items() if key not in ("sha256", "run")}
    digest = hashlib.sha256(data[8 + size :]).hexdigest()
    return f"{json.dumps([header, metadata], indent=1)}\n{digest}"


def page(text: str) -> str:
    """An HTML page, a tag or a text a line, whatever the space between them."""
    text = re.sub(r"<(metadata|dc:date)>.*?</\1>", "", text, flags=re.DOTALL)
    pieces = re.split(r"(<[^>]+>)", text)
    lines = (" ".join(piece.split()) for piece in pieces)
    return without_what_varies("\n".join(line for line in lines if line))


def shrink(corpus: Path) -> None:
    """Keep half a second of each turn of one dialogue a session."""
    import soundfile

    for session in corpus.glob("Session*"):
        names = sorted(path.name for path in (session / "sentences" / "wav").iterdir())
        for name in names[1:]:
            shutil.rmtree(session / "sentences" / "wav" / name)
            for path in session.rglob(f"{name}*"):
                if path.is_file():
                    path.unlink()
        for path in session.glob("sentences/wav/*/[!.]*.wav"):
            samples, rate = soundfile.read(path, dtype="int16")
            soundfile.write(path, samples[: rate // 2], rate)


def models() -> list[str]:
    """The options that name the demo's random encoders."""
    return [f"--model={name}=checkpoints/{name}-random" for name in ("hubert", "mpnet", "bert")]


def compare_help(both: Comparison) -> None:
    """Help of every command, and the settings of every fusion."""
    for arguments in HELP:
        both.command(*arguments)
    for fusion, features in FUSIONS.items():
        both.command("train", "--features", features, "--fusion", fusion, "--settings")


def compare_mistakes(both: Comparison) -> None:
    """One sentence and an exit code each."""
    for arguments in MISTAKES:
        both.command(*arguments)


def compare_corpus(both: Comparison) -> None:
    """The demo corpus and its encoders, written by both, and what is said of them."""
    both.command("corpus", "demo", "demo-corpus")
    both.command("weights", "demo", "demo-checkpoints")
    both.files("demo-corpus", "demo-checkpoints")
    both.command("corpus", "show", "demo-corpus")
    both.command("corpus", "show", "demo-corpus", "--json")


def compare_features(both: Comparison) -> None:
    """Stores in both formats, the second time with nothing to compute."""
    more = ["--features", "hubert:layers=all,pool=mean,hubert:layer=1,hubert:layer=2,egemaps,mfcc"]
    for _ in range(2):
        both.command("features", "corpus", "--store", "features", *models())
    both.command("features", "corpus", "--store", "features", *models(), *more)
    options = ["--backend", "hdf5", "--dtype", "float32", "--part-seconds", "10", "--limit", "12"]
    both.command("features", "corpus", "--store", "hdf5", *models(), *options)
    both.command("features", "corpus", "--store", "features", *models(), "--dry-run", "--retry")
    both.files("features", "hdf5")


def compare_cache(both: Comparison) -> None:
    """What is listed, verified, exported and imported of a store."""
    for arguments in (
        "list",
        "list --json",
        "info hubert",
        "info is13",
        "verify",
        "export is13 is13.csv",
        "export bert bert.npz",
        "export logmel:pool=mean logmel.parquet",
    ):
        both.command("cache", *arguments.split(), "--store", "features")
    for checkout in (both.old, both.new):
        write_table(checkout.folder)
    options = ["--modality", "audio", "--manifest", "table.csv", "--corpus-name", "mine"]
    both.command("cache", "import", "numbers", "numbers.npy", *options, "--store", "imported")
    both.files("imported")
    for name in ("is13.csv", "bert.npz", "logmel.parquet"):
        files = [checkout.folder / name for checkout in (both.old, both.new)]
        digests = [content(file) if file.exists() else "is not there" for file in files]
        both.texts(name, *digests)


def write_table(folder: Path) -> None:
    """A feature file and a manifest for it, as somebody else's."""
    values = numpy.arange(24, dtype=numpy.float32).reshape(8, 3)
    numpy.save(folder / "numbers.npy", values)
    lines = [f"u{row},s{row % 4},{'ang' if row % 2 else 'sad'}" for row in range(8)]
    (folder / "table.csv").write_text("\n".join(["id,speaker,label", *lines]) + "\n")


def compare_train(both: Comparison) -> None:
    """Run folders of every fusion, and of targets, protocols, selections and settings."""
    runs = {fusion: (features, fusion, "") for fusion, features in FUSIONS.items()}
    for name, (features, fusion, options) in {**runs, **MORE_RUNS}.items():
        epochs = [] if "--epochs" in options else ["--epochs", "2"]
        folds = [] if "--folds" in options else ["--folds", "1"]
        settings = [f"--set={name}={value}" for name, value in settings_of(both.old, fusion)]
        both.command(
            *["train", "--features", features, "--fusion", fusion, "--store", "features"],
            *[*epochs, *folds, *settings, *options.split(), "--device", "cpu"],
            *["--out", f"runs/{name.replace(':', '-')}", "--model=bert=checkpoints/bert-random"],
        )
    both.files("runs")


def settings_of(checkout: Checkout, fusion: str) -> list[tuple[str, Any]]:
    """Those of the small settings that a fusion has."""
    features = FUSIONS.get(fusion, "")
    printed = checkout.run(["train", "--features", features, "--fusion", fusion, "--settings"])
    return [
        (name, value) for name, value in SMALL.items() if re.search(rf"(?m)^\s*{name}\b", printed)
    ]


def compare_report(both: Comparison) -> None:
    """Tables and pages of groups of runs."""
    groups = {
        "perspective": [
            f"runs/{name}" for name in ("ef-add", "lf-add", "lgf-add", "seeds", "best-test")
        ],
        "frames": [
            f"runs/{name}" for name in ("mit", "concat", "mit-no-encoder", "cnn+bert", "superb")
        ],
        "ratings": ["runs/vad", "runs/class+vad"],
        "others": [
            f"runs/{name}" for name in ("distribution", "refit", "weights", "icon", "layers")
        ],
    }
    for name, folders in groups.items():
        files = [f"--{kind}={name}.{suffix}" for kind, suffix in FORMATS.items()]
        both.command("report", *folders, "--paired", *files)
        for suffix in FORMATS.values():
            paths = [checkout.folder / f"{name}.{suffix}" for checkout in (both.old, both.new)]
            contents = [content(path) if path.exists() else "is not there" for path in paths]
            both.texts(f"{name}.{suffix}", *contents)
        both.command("report", *folders, "--json")
    both.command("runs", "list", "runs/seeds", "runs/vad")
    both.command("runs", "compare", "runs/lgf-add", "runs/lf-add")


FORMATS = {"html": "html", "latex": "tex", "markdown": "md", "csv": "csv"}


def compare_predict(both: Comparison) -> None:
    """Trained runs on a file of the corpus."""
    wav = "corpus/Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav"
    for run in ("mit", "lgf-add", "superb", "vad", "audio"):
        for name in both.old.folder.glob(f"runs/{run}/*/result.json"):
            folder = name.parent.relative_to(both.old.folder)
            words = ["--text", "How dare you!", *models()]
            both.command("predict", str(folder), wav, *words)
            both.command("predict", str(folder), wav, *words, "--json")


def compare_emodb(both: Comparison, emodb: Path) -> None:
    """Features of openSMILE and log-mel of forty recordings of real speech."""
    options = ["--features", "is13,egemaps,logmel", "--store", "emodb", "--limit", "40"]
    both.command("features", str(emodb), *options)
    both.files("emodb")
    both.command("corpus", "show", str(emodb), "--json")
    for fusion, features in {"audio": "is13", "cnn": "logmel"}.items():
        run = [
            "train",
            "--features",
            features,
            "--fusion",
            fusion,
            "--store",
            "emodb",
            "--epochs",
            "2",
        ]
        both.command(
            *run, "--protocol", "speaker-out", "--folds", "2", "--out", f"emodb-runs/{fusion}"
        )
    both.files("emodb-runs")


def prepare(both: Comparison) -> None:
    """The corpus and the encoders that the other parts use, the same for both."""
    if not (both.old.folder / "corpus").exists():
        both.old.run(["corpus", "demo", "corpus"])
        both.old.run(["weights", "demo", "checkpoints"])
        shrink(both.old.folder / "corpus")
    for name in ("corpus", "checkpoints"):
        if not (both.new.folder / name).exists():
            shutil.copytree(both.old.folder / name, both.new.folder / name)


# What each part writes, and what it needs of the parts before it.
WRITES = {
    "corpus": ["demo-corpus", "demo-checkpoints"],
    "features": ["features", "hdf5"],
    "cache": ["imported"],
    "train": ["runs"],
}
NEEDS = {
    "mistakes": ["features"],
    "cache": ["features"],
    "train": ["features"],
    "report": ["features", "runs"],
    "predict": ["features", "runs"],
}


def start_anew(both: Comparison, part: str) -> None:
    """Remove what the new checkout wrote in this part, and copy what it lacks of those before."""
    if both.new is both.old:
        return
    # Reports and predictions are made of the same runs, since each run has its own seconds.
    same = ["runs"] if part in ("report", "predict") else []
    for name in [*WRITES.get(part, []), *same]:
        shutil.rmtree(both.new.folder / name, ignore_errors=True)
    for name in NEEDS.get(part, []):
        if not (both.old.folder / name).exists():
            sys.exit(f"{part} needs what an earlier part writes ({name}); run that one first")
        if not (both.new.folder / name).exists():
            shutil.copytree(both.old.folder / name, both.new.folder / name)


COMPARE: dict[str, Callable[[Comparison], None]] = {
    "help": compare_help,
    "mistakes": compare_mistakes,
    "corpus": compare_corpus,
    "features": compare_features,
    "cache": compare_cache,
    "train": compare_train,
    "report": compare_report,
    "predict": compare_predict,
}


def main() -> int:
    """Run the parts, and say how much is the same."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.unchanged",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path, nargs="?", default=ROOT)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, joined by commas")
    parser.add_argument("--work", type=Path, default=Path("/tmp/ser-unchanged"))
    parser.add_argument("--emodb", type=Path)
    parser.add_argument("--remember", action="store_true", help="only run OLD, for later")
    asked = parser.parse_args()

    checkouts = []
    for name, path in (("old", asked.old), ("new", asked.new)):
        folder = asked.work / name
        folder.mkdir(parents=True, exist_ok=True)
        checkouts.append(Checkout(name, path.resolve(), folder.resolve(), name == "old"))
    if asked.remember:
        checkouts[1] = checkouts[0]
    both = Comparison(*checkouts)

    prepare(both)
    for part in asked.only.split(","):
        print(f"== {part}", flush=True)
        start_anew(both, part)
        COMPARE[part](both)
    if asked.emodb:
        print("== emodb", flush=True)
        compare_emodb(both, asked.emodb.resolve())

    print(f"{both.compared} compared, {len(both.differences)} differ")
    return 1 if both.differences else 0


if __name__ == "__main__":
    sys.exit(main())
