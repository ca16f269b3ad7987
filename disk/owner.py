"""Whose a lock is: the machine, one of its starts, and the process that hold it."""

import functools
import json
import os
import socket
from pathlib import Path
from typing import NamedTuple


class Machine(NamedTuple):
    """A machine and one of its starts, as the record in a lock names them."""

    host: str
    """Its name and its machine id: copies of an image may share one of them."""

    boot: str
    """What tells one start of it from the next; empty if the system has no such thing."""


@functools.cache
def this_machine() -> Machine:
    """The machine that this process runs on."""
    machine_id = _read_linux("/etc/machine-id")
    boot = _read_linux("/proc/sys/kernel/random/boot_id")
    return Machine(f"{socket.gethostname()} {machine_id}", boot or "")


def _read_linux(file: str) -> str | None:
    return Path(file).read_text().strip() if os.access(file, os.R_OK) else None


def owner_record() -> bytes:
    """What this process writes into a lock that it holds."""
    machine = this_machine()
    record = {"boot": machine.boot, "host": machine.host, "pid": os.getpid()}
    return json.dumps(record).encode()


def read_owner(record: bytes) -> Machine | None:
    """Whose a lock is, by its record; None if that cannot be read."""
    try:
        fields = dict(json.loads(record))
    except (ValueError, TypeError, RecursionError):
        return None

    host = fields.get("host")
    boot = fields.get("boot")
    if isinstance(host, str) and isinstance(boot, str):
        return Machine(host, boot)
    return None
