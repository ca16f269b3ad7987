"""What `--scheduler` may name: `local:N`, the address of a running dask scheduler, or the file that it wrote."""

import ipaddress
import re
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ser.cache.atomic_io import read_named
from ser.errors import SerError, WrongUse

ENCRYPTED = ("tls", "wss", "inproc")  # with certificates; inproc: within this process


def check_scheduler(scheduler: str, insecure: bool = False) -> str:
    """The address, or `local:N` as it is. Asks nobody, so a command can begin with it.

    Raises `WrongUse` for what cannot be a scheduler, and, unless `insecure`, for a plain connection to another
    machine; `SerError` if dask is not installed.
    """
    address = scheduler
    if local_workers(scheduler) is None:
        try:
            if re.fullmatch(r"[\w.\[\]:-]+:\d+", scheduler):
                address = f"tcp://{scheduler}"
            elif "://" not in scheduler:
                address = str(msgspec.json.decode(read_named(scheduler), type=dict[str, Any])["address"])
            if urlsplit(address).port == 0 or "://" not in address:  # asking for the port raises for what is none
                raise ValueError("no address")
        except (OSError, msgspec.DecodeError, ValueError, LookupError, RecursionError) as fault:
            raise WrongUse(
                f"--scheduler {scheduler}: is not an address such as tcp://127.0.0.1:8786, not local:N, and not a "
                f"scheduler file, as `dask scheduler --scheduler-file` writes one ({fault})"
            ) from None
        if not insecure and not is_protected(address):
            raise WrongUse(
                f"--scheduler {scheduler}: {address} is plain and leads to another machine, and dask runs whatever it "
                "is sent; use tls:// or an ssh tunnel to 127.0.0.1, or say --insecure where you trust everyone on the "
                "network"
            )
    if find_spec("distributed") is None:
        raise SerError("--scheduler needs dask: pip install 'ser-fusion[cluster]'")
    return address


def local_workers(scheduler: str) -> int | None:
    """N of `local:N`; None for anything else. Raises `WrongUse` if N is not a number of workers."""
    kind, _, number = scheduler.partition(":")
    if kind != "local":
        return None
    if not number.isdecimal() or not int(number):
        raise WrongUse(f"--scheduler {scheduler}: write local:N with N workers, such as local:4")
    return int(number)


def is_protected(address: str) -> bool:
    """Whether nobody on the network can read or alter what is sent there."""
    return urlsplit(address).scheme in ENCRYPTED or on_this_machine(address)


def on_this_machine(address: str) -> bool:
    """Whether it is a loopback address: no other machine can reach what listens there, or be reached."""
    host = urlsplit(address).hostname
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
