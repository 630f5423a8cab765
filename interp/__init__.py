"""`interp`: mechanistic interpretability as batch jobs, driven by one study file.

The names below are loaded when they are first used, so that `import interp` (and with it the commands that validate and
plan) loads neither torch nor ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from interp.version import __version__

_LAZY = {
    "CrossLayerTranscoder": "interp.dictionaries",
    "HookedModel": "interp.wrapper",
    "HookedSplitLlama": "interp.wrapper",
    "SparseAutoencoder": "interp.dictionaries",
    "Transcoder": "interp.dictionaries",
}
__all__ = ["CrossLayerTranscoder", "HookedModel", "HookedSplitLlama", "SparseAutoencoder", "Transcoder", "__version__"]

if TYPE_CHECKING:
    from interp.dictionaries import CrossLayerTranscoder, SparseAutoencoder, Transcoder
    from interp.wrapper import HookedModel, HookedSplitLlama


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'interp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
