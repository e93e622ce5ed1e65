"""The op catalogue, one file a family: importing this package defines every op.

A new file in this folder is found by itself.
"""

import importlib
import pkgutil

for _family in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_family.name}")
