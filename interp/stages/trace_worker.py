"""Prompts of a trace, in an actor: text -> tokens -> attribution graph -> what is kept of it, in the scratch.

    graphs/<slug>.json          the pruned graph           graphs/<slug>.safetensors   its edges, or those of the whole
    sums/<slug>.safetensors     of the whole graph, for the aggregation over prompts
    faithfulness/<slug>.json    when the study asks        rows/<slug>.json            last: a prompt with a row is done

An actor gets a few prompts of like length at a time: short ones are computed together, where that is faster
(`interp.circuits.lockstep`). Each is written as soon as it is done, and one that fails stops no other.

`target: last-token` cuts the last token off a prompt and explains why it came: it is among the target logits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from interp.errors import DictionaryError, EngineError, InterpError, ModelError, PromptError
from interp.sources.prompts import Prompt
from interp.stages.dictionary_sets import DictionarySet
from interp.stages.trace_memory import Group, Item, Smaller, within_memory

if TYPE_CHECKING:
    from interp.circuits.attribution import AttributionComputer, AttributionEdges
    from interp.circuits.graph import AttributionGraph
    from interp.circuits.replacement_model import ReplacementModel
    from interp.circuits.replacements import Transcoders
    from interp.circuits.state import ReplacementState
    from interp.dictionaries import Dictionary
    from interp.engine.base import Device
    from interp.spec.study import ModelSpec
    from interp.spec.trace import TraceSpec
    from interp.store import Scratch
    from interp.wrapper import HookedModel


Found = dict[str, Any] | InterpError
"""The row of a prompt, or why there is none."""


@dataclass(frozen=True)
class TraceWorker:
    """What an actor needs to trace prompts; it leaves what it finishes in the scratch."""

    model: ModelSpec
    transcoders: DictionarySet
    spec: TraceSpec
    scratch: Scratch
    provenance: Mapping[str, str]
    device: Device = "auto"

    def start(self) -> Callable[[Item], list[Found]]:
        import torch

        from interp.circuits.replacement_model import ReplacementModel
        from interp.models.loading import load_model
        from interp.wrapper import HookedModel

        spec = self.spec
        device = "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"
        hooked = HookedModel(load_model(self.model, device=device, attention="eager"))
        _check_tokenizer(hooked, spec)
        transcoders = _transcoders(self.transcoders.load(hooked), self.transcoders.name)
        replacement = ReplacementModel(
            hooked, transcoders, mlp=self.transcoders.mlp, bos=spec.bos, max_tokens=spec.max_tokens
        )
        provenance = {**self.provenance, "model_fingerprint": hooked.fingerprint}
        return lambda item: self._within_memory(item, replacement, provenance)

    def _within_memory(self, item: Item, rm: ReplacementModel, provenance: Mapping[str, str]) -> list[Found]:
        """A few prompts, with as much of their budget as there is memory for."""
        prompts, halvings = (item.prompts, item.halvings) if isinstance(item, Smaller) else (item, 0)
        return within_memory(
            self.spec,
            halvings,
            lambda spec: replace(self, spec=spec)._trace(prompts, _computer(rm, spec), provenance),
        )

    def _trace(self, prompts: Group, computer: AttributionComputer, provenance: Mapping[str, str]) -> list[Found]:
        """The row of each prompt, or why there is none; what befalls one that is alone is raised."""
        if len(prompts) == 1:
            return [self._alone(prompts[0], computer, provenance)]
        found: dict[int, Found] = {}
        asked: dict[int, Asked] = {}
        for place, prompt in enumerate(prompts):
            try:
                asked[place] = asked_of(prompt.text, computer.rm.hooked, self.spec)
            except InterpError as error:
                found[place] = error
        lengths = {place: len(each.ids) for place, each in asked.items()}
        for batch in computer.rm.batches(lengths, self.spec.memory):
            group = [(prompts[place], asked[place]) for place in batch]
            found |= zip(batch, self._together(group, computer, provenance), strict=True)
        return [found[place] for place in range(len(prompts))]

    def _alone(self, prompt: Prompt, computer: AttributionComputer, provenance: Mapping[str, str]) -> dict[str, Any]:
        started = time.perf_counter()
        asked = asked_of(prompt.text, computer.rm.hooked, self.spec)
        state = computer.rm.build(asked.ids, memory=self.spec.memory)
        edges = computer.compute_full_graph(state, last_token=asked.last_token, row=prompt.row)
        return self._write(prompt, asked, computer, state, edges, provenance, time.perf_counter() - started)

    def _together(
        self, group: Sequence[tuple[Prompt, Asked]], computer: AttributionComputer, provenance: Mapping[str, str]
    ) -> Iterator[Found]:
        """Prompts that go through the model together."""
        started = time.perf_counter()
        states = computer.rm.build_many([asked.ids for _, asked in group], memory=self.spec.memory)
        built = [place for place, state in enumerate(states) if not isinstance(state, InterpError)]
        computed = computer.compute_graphs(
            [state for state in states if not isinstance(state, InterpError)],
            last_tokens=[group[place][1].last_token for place in built],
            rows=[group[place][0].row for place in built],
        )
        graphs = dict(zip(built, computed, strict=True))
        share = (time.perf_counter() - started) / len(group)
        for place, (prompt, asked) in enumerate(group):
            state, edges = states[place], graphs.pop(place, None)
            try:
                if isinstance(state, InterpError):
                    raise state
                if edges is None or isinstance(edges, InterpError):
                    raise edges or EngineError("a prompt was left out", value=prompt.id)
                yield self._write(prompt, asked, computer, state, edges, provenance, share)
            except InterpError as error:
                yield error

    def _write(
        self,
        prompt: Prompt,
        asked: Asked,
        computer: AttributionComputer,
        state: ReplacementState,
        edges: AttributionEdges,
        provenance: Mapping[str, str],
        seconds: float,
    ) -> dict[str, Any]:
        """Leave what is kept of a prompt in the scratch; `seconds` were spent on it before."""
        from interp.circuits.graph import AttributionGraph

        started = time.perf_counter()
        whole = AttributionGraph.from_edges(edges, slug=prompt.id, prompt=asked.text, provenance=provenance)
        graph = whole.prune(self.spec.prune.nodes, self.spec.prune.edges)
        self._keep(whole, graph)
        row = {
            **row_of(graph, asked.last_token),
            **self._faithfulness(prompt.id, computer, state, edges),
            "seconds": seconds + time.perf_counter() - started,
            "status": "ok",
            "reason": None,
            "metadata": graph.metadata(),
        }
        self.scratch.write_json(row_name(prompt.id), row)
        return row

    def _keep(self, whole: AttributionGraph, graph: AttributionGraph) -> None:
        from interp.circuits.aggregate import FeatureSums
        from interp.circuits.sparse_file import tensor_chunks

        self.scratch.write(graph_name(graph.slug), graph.to_bytes())
        if self.spec.adjacency != "none":
            chosen = whole if self.spec.adjacency == "full" else graph
            # Straight into the scratch: a worker that is killed here leaves no file of gigabytes in /tmp.
            self.scratch.write_chunks(tensors_name(graph.slug), *tensor_chunks(chosen))
        self.scratch.write(sums_name(graph.slug), FeatureSums.of(whole).to_bytes())

    def _faithfulness(
        self, slug: str, computer: AttributionComputer, state: ReplacementState, edges: AttributionEdges
    ) -> dict[str, Any]:
        """The columns that say how faithful the graph is, when the study asks."""
        if self.spec.faithfulness is None:
            return {}
        from interp.circuits.faithfulness import faithfulness

        found = faithfulness(computer.rm, state, edges, self.spec.faithfulness)
        self.scratch.write_json(faithfulness_name(slug), found.to_json())
        return {
            "faithfulness_slope": found.slope,
            "faithfulness_r2": found.r2,
            "faithfulness_slope_readout": found.slope_readout,
            "faithfulness_r2_readout": found.r2_readout,
            "faithfulness_slope_frozen": found.slope_frozen,
            "faithfulness_r2_frozen": found.r2_frozen,
        }


def _computer(rm: ReplacementModel, spec: TraceSpec) -> AttributionComputer:
    from interp.circuits.attribution import AttributionComputer

    return AttributionComputer(
        rm,
        target=spec.target,
        max_features=spec.max_features,
        logits=spec.logits,
        batch=spec.batch,
        memory=spec.memory,
    )


def row_of(graph: AttributionGraph, last_token: int | None) -> dict[str, Any]:
    """What the index says of a graph: of nodes, edges and features after the pruning, of scores before it."""
    tokens = graph.nodes.logits.tolist()
    which = tokens.index(last_token) if last_token is not None else 0
    return {
        "slug": graph.slug,
        "prompt": graph.prompt,
        "target": graph.logit_tokens[which],
        "target_probability": float(graph.probabilities[which]) if tokens[which] >= 0 else None,
        "n_tokens": graph.nodes.n_pos,
        "n_nodes": int(graph.drawn().sum()),
        "n_edges": graph.edges.n_edges,
        "n_features": graph.nodes.n_features,
        "n_active": graph.n_active,
        "residual": graph.residual,
        "replacement_score": graph.scores.replacement,
        "completeness_score": graph.scores.completeness,
    }


@dataclass(frozen=True)
class Asked:
    """What is traced of a prompt: its tokens and their text, without the last token where that is the target."""

    ids: list[int]
    text: str
    last_token: int | None = None


def asked_of(text: str, hooked: HookedModel, spec: TraceSpec) -> Asked:
    """What a study asks of a prompt.

    Raises:
        PromptError: there is nothing in it, or nothing but its target, or something that there is no token for.
    """
    if spec.target != "last-token":
        return Asked(token_ids(hooked, text, spec), text)
    # A newline that ends a file or a line was not written to be predicted.
    text = text.rstrip("\r\n")
    *ids, last = token_ids(hooked, text, spec)
    bos = int(_with_bos(hooked, spec))
    if len(ids) == bos:
        raise PromptError(
            "the prompt is its own target: it is one token, which is cut off",
            value=shown(text),
            expected="at least two tokens where trace.target is last-token",
        )
    word = hooked.tokenizer.decode([last])
    cut = text.removesuffix(word) if word and text.endswith(word) else hooked.tokenizer.decode(ids[bos:])
    return Asked(ids, cut, last)


def token_ids(hooked: HookedModel, text: str, spec: TraceSpec) -> list[int]:
    """A prompt as tokens, with BOS by the rule of the study.

    Raises:
        PromptError: there is nothing in it, or something that the tokenizer has no token for.
    """
    bos = _with_bos(hooked, spec)
    ids: list[int] = hooked.tokenize(text, bos=bos)[0].tolist()
    if len(ids) == int(bos):
        raise PromptError("the prompt is empty", value=shown(text), expected="at least one token")
    unknown = getattr(hooked.tokenizer, "unk_token_id", None)
    if unknown is not None and unknown in ids and unknown not in (hooked.bos_token_id, hooked.tokenizer.eos_token_id):
        raise PromptError(
            "the tokenizer has no token for a part of the prompt",
            value=shown(text),
            expected="text of the model's vocabulary",
            remedy="change the prompt, or use the tokenizer that the model was trained with",
        )
    return ids


def _with_bos(hooked: HookedModel, spec: TraceSpec) -> bool:
    return spec.bos != "never" and hooked.bos_token_id is not None


def _transcoders(loaded: Mapping[str, Dictionary], name: str) -> Transcoders:
    """One transcoder for each place, or the one that crosses layers."""
    from interp.dictionaries import CrossLayerTranscoder, Transcoder

    crossing = [found for found in loaded.values() if isinstance(found, CrossLayerTranscoder)]
    if crossing and len(loaded) == 1:
        return crossing[0]
    for at, dictionary in loaded.items():
        if not isinstance(dictionary, Transcoder):
            raise DictionaryError(
                f"a replacement model is made of transcoders, and {name!r} has another dictionary at {at}",
                value=dictionary.config.kind,
                expected="transcoders or skip-transcoders, or one cross-layer-transcoder",
                remedy="name transcoders in trace.dictionaries",
            )
    return {at: found for at, found in loaded.items() if isinstance(found, Transcoder)}


def _check_tokenizer(hooked: HookedModel, spec: TraceSpec) -> None:
    if spec.bos == "keep" and hooked.bos_token_id is None:
        raise ModelError(
            "the tokenizer has no BOS token", value="trace.bos: keep", remedy="set trace.bos to auto or never"
        )


def graph_name(slug: str) -> str:
    return f"graphs/{slug}.json"


def tensors_name(slug: str) -> str:
    return f"graphs/{slug}.safetensors"


def sums_name(slug: str) -> str:
    return f"sums/{slug}.safetensors"


def faithfulness_name(slug: str) -> str:
    return f"faithfulness/{slug}.json"


def row_name(slug: str) -> str:
    return f"rows/{slug}.json"


def shown(text: str) -> str:
    """A prompt as a report can hold it: half a surrogate pair cannot be written as UTF-8."""
    return text.encode("utf-8", "replace").decode()
