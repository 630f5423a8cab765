"""Sparse dictionaries: autoencoders and transcoders, their activations, losses and files."""

from __future__ import annotations

from interp.dictionaries.autoencoder import SparseAutoencoder
from interp.dictionaries.base import SparseDictionary
from interp.dictionaries.config import (
    CrossLayerConfig,
    CrossLayerPlace,
    DictionaryConfig,
    ModelIdentity,
    Normalization,
)
from interp.dictionaries.cross_layer import CrossLayerTranscoder
from interp.dictionaries.dictionary import UNCHECKED, Dictionary, HasFingerprint
from interp.dictionaries.files import DICTIONARIES, build_dictionary, load_dictionaries
from interp.dictionaries.folding import fold, fold_cross_layer
from interp.dictionaries.transcoder import Transcoder

__all__ = [
    "DICTIONARIES",
    "UNCHECKED",
    "CrossLayerConfig",
    "CrossLayerPlace",
    "CrossLayerTranscoder",
    "Dictionary",
    "DictionaryConfig",
    "HasFingerprint",
    "ModelIdentity",
    "Normalization",
    "SparseAutoencoder",
    "SparseDictionary",
    "Transcoder",
    "build_dictionary",
    "fold",
    "fold_cross_layer",
    "load_dictionaries",
]
