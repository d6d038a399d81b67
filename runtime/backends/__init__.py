"""One module per inference library; a library is imported only when its backend is opened.

Its properties that are known without the import are in `*_info.py`; `registry.py` lists all backends.
"""

from sdrpn.runtime.backends.onnxruntime_info import onnxruntime_version
from sdrpn.runtime.backends.registry import AUTOMATIC, BACKENDS, backend_info, graph_backends, open_backend
from sdrpn.runtime.backends.tensorrt_info import open_tensorrt

__all__ = [
    "AUTOMATIC",
    "BACKENDS",
    "backend_info",
    "graph_backends",
    "onnxruntime_version",
    "open_backend",
    "open_tensorrt",
]
