"""What takes seconds to import, and the tests' worker processes use.

See `fork_server` in conftest.py.
"""

import importlib

for name in ("ser.extract.mel", "ser.extract.smile", "ser.extract.speech", "ser.extract.text"):
    importlib.import_module(name)
for architecture in ("bert", "hubert", "mpnet"):
    importlib.import_module(f"transformers.models.{architecture}.modeling_{architecture}")
