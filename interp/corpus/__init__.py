"""Text to token blocks: documents in a fixed order, tokenised, packed into contexts, cut at exact budgets."""

from interp.corpus.documents import documents
from interp.corpus.packing import Budget, Packer
from interp.corpus.rows import Document
from interp.corpus.tokenizer import TokenizedBatch, TokenizeWorker
from interp.corpus.tokens import CorpusSummary, TokenBlocks

__all__ = [
    "Budget",
    "CorpusSummary",
    "Document",
    "Packer",
    "TokenBlocks",
    "TokenizeWorker",
    "TokenizedBatch",
    "documents",
]
