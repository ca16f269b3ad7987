"""What `--scheduler` may say, and which schedulers may be talked to.

Dask has no passwords: whoever reaches a scheduler's port has every worker, and this process, run what he sends. So a
plain connection that leaves this machine is refused unless it is asked for.
"""

import ipaddress
import json
import logging
import re
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from ser.cache.errors import SerError, WrongUse

SAFE = ("tls", "wss", "inproc")  # encrypted and with certificates, or within this process
log = logging.getLogger("ser.engines")


def local_workers(scheduler: str) -> int | None:
    """N of `local:N`; None for anything else. Raises `WrongUse` for an N that is no number of workers."""
    kind, _, number = scheduler.partition(":")
    if kind != "local":
        return None
    if not number.isdecimal() or not int(number):
        raise WrongUse(f"--scheduler {scheduler}: write local:N with N workers, such as local:4")
    return int(number)


def check_scheduler(scheduler: str, insecure: bool = False) -> None:
    """Before anything is begun. Raises `WrongUse` for what no cluster can be, and `SerError` without dask."""
    if local_workers(scheduler) is None:
        _allowed(scheduler, insecure)
    if find_spec("distributed") is None:
        raise SerError("--scheduler needs dask: pip install 'ser[cluster]'")


def checked_address(scheduler: str, insecure: bool = False) -> str:
    """The address of a running scheduler, from an address or the path of dask's scheduler file.

    Raises `WrongUse` for what is neither, and for a plain connection beyond this machine unless `insecure`, which
    warns instead.
    """
    address = _allowed(scheduler, insecure)
    if not _is_safe(address):
        log.warning("%s: dask runs whatever it is sent, and asks nobody who they are; --insecure accepts that", address)
    return address


def _allowed(scheduler: str, insecure: bool) -> str:
    address = scheduler
    if "://" not in scheduler:
        address = f"tcp://{scheduler}" if re.fullmatch(r"[\w.\[\]:-]+:\d+", scheduler) else _from_file(Path(scheduler))
    try:
        parts = urlsplit(address)
        _ = parts.hostname, parts.port
    except ValueError:
        raise WrongUse(f"--scheduler {scheduler}: {address!r} is no address such as tcp://127.0.0.1:8786") from None
    if not insecure and not _is_safe(address):
        raise WrongUse(
            f"--scheduler {scheduler}: {address} is plain and leads to another machine, and dask runs whatever it is "
            "sent; use tls:// or an ssh tunnel to 127.0.0.1, or say --insecure where you trust everyone on the network"
        )
    return address


def _is_safe(address: str) -> bool:
    return urlsplit(address).scheme in SAFE or on_this_machine(address)


def on_this_machine(address: str) -> bool:
    """Whether it is a loopback address: nobody else can reach what listens there, or be reached."""
    host = urlsplit(address).hostname
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _from_file(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WrongUse(
            f"--scheduler {path}: is no address such as tcp://127.0.0.1:8786, not local:N, and no scheduler file "
            f"({error.strerror})"
        ) from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("address"), str) or "://" not in found["address"]:
        raise WrongUse(f"--scheduler {path}: is no scheduler file; `dask scheduler --scheduler-file` writes one")
    return found["address"]
