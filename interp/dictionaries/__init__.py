"""Sparse dictionaries: autoencoders and transcoders, their activations, losses and files."""

from __future__ import annotations

from interp.dictionaries.autoencoder import SparseAutoencoder
from interp.dictionaries.base import UNCHECKED, HasFingerprint, SparseDictionary
from interp.dictionaries.config import DictionaryConfig, ModelIdentity, Normalization
from interp.dictionaries.files import DICTIONARIES, build_dictionary, load_dictionaries
from interp.dictionaries.folding import fold
from interp.dictionaries.transcoder import Transcoder

__all__ = [
    "DICTIONARIES",
    "UNCHECKED",
    "DictionaryConfig",
    "HasFingerprint",
    "ModelIdentity",
    "Normalization",
    "SparseAutoencoder",
    "SparseDictionary",
    "Transcoder",
    "build_dictionary",
    "fold",
    "load_dictionaries",
]
