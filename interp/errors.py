"""Everything that `interp` raises on purpose, as one tree.

    InterpError
      SpecError            a study file says something that is not allowed
      SourceError          a model, corpus or prompt source cannot be found or read
      StoreError           the artifact store
        ArtifactMissing      no manifest: the artifact is not there, or not finished
        ArtifactCorrupt      a file is absent, truncated or changed since its manifest was written
        StoreAccessError     credentials, permission, a refused or failed write
        LockHeld             another writer is making the same artifact
      ModelError           a checkpoint that cannot be loaded or is not what it claims to be
        UnsafeFormat         weights in a format that can execute code
        ProbeFailed          the families table does not describe this model
      HookError            a hook point that the model does not have
      DictionaryError      a dictionary's weights or configuration
        ModelMismatch        a dictionary used with another model than it was trained on
      CorpusError          a corpus that cannot give what the study asks for
      PromptError          one prompt that cannot be traced: empty, too long, unknown token
      EngineError          a worker, an actor or the cluster failed, or the work does not fit
      ClusterError         the Kubernetes API refused, or cannot be reached

Each message carries what happened, the value that was found, what was expected and what to do about it.
"""

from __future__ import annotations


class InterpError(Exception):
    """A failure that `interp` understands.

    Args:
        what: one clause that says what went wrong.
        value: the offending value, shown with `repr` (never a secret).
        expected: what would have been accepted.
        remedy: what the reader can do now.
    """

    def __init__(self, what: str, *, value: object = None, expected: str | None = None, remedy: str | None = None):
        self.what, self.value, self.expected, self.remedy = what, value, expected, remedy
        lines = [what]
        if value is not None:
            lines.append(f"  found:    {value if isinstance(value, str) else repr(value)}")
        if expected is not None:
            lines.append(f"  expected: {expected}")
        if remedy is not None:
            lines.append(f"  remedy:   {remedy}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders (Ray, multiprocessing); keyword-only arguments need help to travel.
        return (_rebuild, (type(self), self.what, self.value, self.expected, self.remedy))


def _rebuild(
    kind: type[InterpError], what: str, value: object, expected: str | None, remedy: str | None
) -> InterpError:
    return kind(what, value=value, expected=expected, remedy=remedy)


class SpecError(InterpError):
    """A study file says something that is not allowed."""


class SourceError(InterpError):
    """A model, corpus or prompt source cannot be found or read."""


class StoreError(InterpError):
    """The artifact store failed."""


class ArtifactMissing(StoreError):
    """There is no manifest: the artifact does not exist, or was never finished."""


class ArtifactCorrupt(StoreError):
    """A file of an artifact is absent, truncated or changed since its manifest was written."""


class StoreAccessError(StoreError):
    """The store refused: wrong credentials, no permission, no space, no bucket."""


class LockHeld(StoreError):
    """Another writer holds the lock of this artifact."""


class ModelError(InterpError):
    """A checkpoint that cannot be loaded, or is not what it claims to be."""


class UnsafeFormat(ModelError):
    """Weights in a format that can execute code when read."""


class ProbeFailed(ModelError):
    """The families table does not describe this model: a probe did not have its effect."""


class HookError(InterpError):
    """A hook point that the model does not have."""


class DictionaryError(InterpError):
    """A dictionary's weights or configuration are not usable."""


class ModelMismatch(DictionaryError):
    """A dictionary used with another model than the one it was trained on."""


class CorpusError(InterpError):
    """A corpus that cannot give what the study asks for."""


class PromptError(InterpError):
    """One prompt that cannot be traced."""


class EngineError(InterpError):
    """A worker, an actor or the cluster failed, or the work does not fit."""


class ClusterError(InterpError):
    """The Kubernetes API refused, or cannot be reached."""
