"""Fidelity of dictionaries on held-out text, as sums that merge: over batches, over workers, over runs."""

from interp.eval.evaluation import DictionarySums, EvaluationSums, Evaluator
from interp.eval.fidelity import BatchLosses, FidelitySums, LossSums, replacement, splice
from interp.eval.reconstruction import ReconstructionSums
from interp.eval.similarity import Overlap, Similarity, similarities
from interp.eval.sparsity import SparsitySums

__all__ = [
    "BatchLosses",
    "DictionarySums",
    "EvaluationSums",
    "Evaluator",
    "FidelitySums",
    "LossSums",
    "Overlap",
    "ReconstructionSums",
    "Similarity",
    "SparsitySums",
    "replacement",
    "similarities",
    "splice",
]
