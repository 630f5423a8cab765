"""Models: SplitLlama, the families table, and loading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.models.families import FAMILIES, Family
    from interp.models.loading import LoadedModel, load_model
    from interp.models.split_llama import SplitLlama, SplitLlamaConfig

_HOMES = {
    "FAMILIES": "families",
    "Family": "families",
    "LoadedModel": "loading",
    "SplitLlama": "split_llama",
    "SplitLlamaConfig": "split_llama",
    "load_model": "loading",
}

__all__ = ["FAMILIES", "Family", "LoadedModel", "SplitLlama", "SplitLlamaConfig", "load_model"]


def __getattr__(name: str) -> Any:
    # torch and transformers are loaded when a name is first used, not by `import interp.models`.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
