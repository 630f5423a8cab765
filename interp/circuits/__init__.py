"""Circuits: the replacement model of a prompt, its attribution graph, and what of the graph matters.

nodes               which nodes a graph has, in which order: the one owner of node indices
edges               sparse rows of the adjacency: target by target, its sources and weights
replacement_model   one forward of the model, frozen: ReplacementModel.build(ids) -> ReplacementState
replacements        what stands for MLPs or is added to them: transcoders, cross-layer transcoders, adapters
explained           which targets a graph has: what a study says -> targets
targets             what can be explained: logits, directions, features
sweep               rows of the adjacency, by one downward pass for many targets
descent, pull       that pass, layer by layer; gradients through one frozen block
memory, spill       what of a prompt's budget goes where; tensors on disk
rows                rows as they are needed: smaller sweeps when memory runs out, rows held for the selection
influence           what a node or an edge contributes to the logits, and the scores of a graph
selection           which features are worth a row when there are too many
attribution         AttributionComputer: all of these -> AttributionEdges
prune               the nodes and edges that carry most of the influence
graph, document     AttributionGraph, and the graph JSON that others read
sparse_file         the same graph as safetensors
aggregate           which features matter over many graphs
edits               features held at other values, and how the others respond
replay, rerun       what that changes: in the frozen model; in the model itself
intervene, generate ablate, set or scale features: logits before and after; text
readings            what targets read when features are edited
faithfulness        predicted against measured effects of a graph's features
"""
