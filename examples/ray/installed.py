"""Imported before Ray: where a library of the extra `ray` is not installed, the script ends with one line."""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__: list[str] = []

_missing = next((name for name in ("ray", "pyarrow", "fastapi") if find_spec(name) is None), None)
if _missing is not None:
    print(f"{_missing} is not installed, which this example needs: pip install 'sdrpn[ray]'", file=sys.stderr)
    sys.exit(2)
