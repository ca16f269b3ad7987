"""What computes tasks in one process: its open extractors, and its thread pools."""

import contextlib
import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ser.cache.store import Store
from ser.corpus.names import Modality

from .batches import GPU_SECONDS
from .extractor import Extractor
from .inputs import Inputs
from .resolve import load_extractors
from .tasks import WorkerConfig

# Batches on a GPU at once: the rows of one are copied from it while the next is computed.
GPU_BATCHES = 2
# A part of HuBERT's rows takes longer to write than a GPU takes to compute it.
GPU_WRITERS = 4


class Worker:
    """One set of open extractors, and what the tasks that use them share.

    On a CPU every stage shares one pool with a thread per core, and each thread computes alone:
    utterances are independent, so this scales where threads within one small operation do not. On a
    GPU the models have threads of their own, fed by decoding threads that never wait behind the
    slower CPU extractors.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.store = Store(config.store)
        self.inputs = Inputs(config.root)
        # Told of each stage how many more utterances are done.
        self.on_stage: Callable[[str, int], None] | None = None
        self.on_gpu = config.device != "cpu"

        # The padded seconds of a batch, at most; None: utterances one by one.
        self.batch_limit = config.batch_seconds
        if self.batch_limit is None and self.on_gpu:
            self.batch_limit = GPU_SECONDS

        # Held while a batch is on the GPU; on a CPU it limits nothing.
        self.gpu: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if self.on_gpu:
            self.gpu = threading.Semaphore(GPU_BATCHES)

        # Held while several threads' counts are added up.
        self.lock = threading.Lock()
        self._opening = threading.Lock()
        self._extractors: dict[Modality, list[Extractor]] = {}

    def extractors(self, modality: Modality) -> list[Extractor]:
        """Those of one modality, opened when they are first needed.

        So an all-text run loads no speech model.
        """
        # A dask worker may have several threads: no model is loaded twice.
        with self._opening:
            if modality not in self._extractors:
                features = [
                    feature for feature in self.config.features if feature.spec.modality == modality
                ]
                self._extractors[modality] = load_extractors(
                    features, self.config.device, self.batch_limit
                )
            return self._extractors[modality]

    def close(self) -> None:
        """Drop the extractors and open recordings, and free the GPU memory that they took."""
        self._extractors.clear()
        self.inputs.close()
        if self.on_gpu:
            import torch

            # A module and its hooks refer to each other.
            gc.collect()
            torch.cuda.empty_cache()


class Pool(ThreadPoolExecutor):
    """Threads, and their number."""

    def __init__(self, width: int, name: str) -> None:
        super().__init__(width, name)
        self.width = width


class Pools(contextlib.ExitStack):
    """The thread pools of one run's stages; on a CPU all but the writers share one.

    When they close, as on Ctrl-C, running work ends (an utterance, a publication), and waiting work
    never starts.
    """

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__()
        on_gpu = config.device != "cpu"
        self.writers = self.enter_context(Pool(GPU_WRITERS if on_gpu else 1, "ser-write"))
        self.cpu = self.enter_context(Pool(config.threads, "ser-cpu"))
        self.models = self.cpu
        self.decoders = self.cpu
        if on_gpu:
            model_threads = GPU_BATCHES if config.device.startswith("cuda") else 1
            self.models = self.enter_context(Pool(model_threads, "ser-gpu"))
            self.decoders = self.enter_context(Pool(max(2, config.threads // 4), "ser-decode"))

        # Called before the pools are left: all are told to stop, before any is waited for.
        for pool in (self.decoders, self.models, self.cpu, self.writers):
            self.callback(pool.shutdown, wait=False, cancel_futures=True)
        # Before that: a recording is read in one go, which would not end for long.
        self.stopping = threading.Event()
        self.callback(self.stopping.set)
