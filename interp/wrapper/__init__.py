"""Hook points on any model of the families table: reading, editing, the frozen linear map, activations on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.wrapper.activations import ActivationCache
    from interp.wrapper.cache import DiskCache
    from interp.wrapper.hooked import HookedModel, HookedSplitLlama
    from interp.wrapper.topology import Topology

_HOMES = {
    "ActivationCache": "activations",
    "DiskCache": "cache",
    "HookedModel": "hooked",
    "HookedSplitLlama": "hooked",
    "Topology": "topology",
}

__all__ = ["ActivationCache", "DiskCache", "HookedModel", "HookedSplitLlama", "Topology"]


def __getattr__(name: str) -> Any:
    # torch and nnsight are loaded when a name is first used, not by `import interp.wrapper`.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
