"""The address of a dask scheduler, checked before anything is sent there, and its workers."""

import ipaddress
import math
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ser.disk.read import read_named
from ser.errors import SerError, WrongUse

# Resource → how much of it a task needs, as in `dask worker --resources "GPU=1"`.
Needs = Mapping[str, float]

# With certificates; inproc: within this process.
ENCRYPTED = ("tls", "wss", "inproc")


def check_scheduler(scheduler: str, insecure: bool = False, workers: int | None = None) -> str:
    """The address, or `local:N` as it is, checked without a connection.

    Raises `WrongUse` for what cannot be a scheduler, for `workers` given beside one, and, unless
    `insecure`, for a plain connection to another machine; `SerError` if dask is not installed.
    """
    if workers is not None:
        raise WrongUse(
            "--workers starts processes here, and --scheduler uses the workers of a cluster: "
            "give one"
        )

    address = scheduler
    if local_workers(scheduler) is None:
        address = _read_address(scheduler)
        if not insecure and not is_protected(address):
            raise WrongUse(
                f"--scheduler {scheduler}: {address} is not encrypted and leads to another "
                "machine, and dask runs whatever it is sent; use tls:// or an ssh tunnel to "
                "127.0.0.1, or --insecure if you trust everyone on the network"
            )

    if find_spec("distributed") is None:
        raise SerError("--scheduler needs dask: run `pip install 'ser-fusion[cluster]'`")
    return address


def _read_address(scheduler: str) -> str:
    """An address as it is, or the one that a scheduler file holds. Raises `WrongUse`."""
    try:
        address = scheduler
        if "://" not in scheduler:
            record = msgspec.json.decode(read_named(scheduler), type=dict[str, Any])
            address = str(record["address"])
        # `port` raises for one that is not a number.
        if urlsplit(address).port == 0 or "://" not in address:
            raise ValueError("no address")
        return address
    except (OSError, msgspec.DecodeError, ValueError, LookupError, RecursionError) as error:
        raise WrongUse(
            f"--scheduler {scheduler}: is not an address such as tcp://127.0.0.1:8786, not "
            "local:N, and not a scheduler file, as `dask scheduler --scheduler-file` writes one "
            f"({error})"
        ) from None


def local_workers(scheduler: str) -> int | None:
    """N of `local:N`; None for anything else. Raises `WrongUse` if N is not a number of workers."""
    kind, _, number = scheduler.partition(":")
    if kind != "local":
        return None
    if not number.isdecimal() or not int(number):
        raise WrongUse(f"--scheduler {scheduler}: write local:N with N workers, such as local:4")
    return int(number)


def is_protected(address: str) -> bool:
    """Whether no one on the network can read or alter what is sent there."""
    return urlsplit(address).scheme in ENCRYPTED or on_this_machine(address)


def on_this_machine(address: str) -> bool:
    """Whether it is a loopback address, which no other machine can reach."""
    host = urlsplit(address).hostname
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def can_run(workers: Iterable[Needs], needs: Needs) -> bool:
    """Whether a worker with one of these sets of resources could run a task."""
    for resources in workers:
        if all(resources.get(name, 0) >= amount for name, amount in needs.items()):
            return True
    return False


def no_worker(address: str, needs: Needs) -> str:
    """One sentence: which worker is missing, and how to start one.

    It listens no wider than the scheduler.
    """
    # A share needs a whole one.
    resources = ", ".join(f"{name}={math.ceil(amount)}" for name, amount in needs.items())
    fault = f"the dask scheduler at {address} has no worker"
    if needs:
        fault += f" with {resources}"
    if local_workers(address):
        return f"{fault}; what was finished is kept: run again"

    host = "127.0.0.1" if on_this_machine(address) else "ITS_ADDRESS"
    command = f"dask worker {address} --host {host} --dashboard-address 127.0.0.1:0 --nthreads 1"
    if address.startswith("tls:"):
        command += " --tls-ca-file FILE --tls-cert FILE --tls-key FILE"
    if needs:
        command += f' --resources "{resources}"'
    return f"{fault}; what was finished is kept: start one by `{command}` and run again"
