"""Dictionaries that cross between interp and other programs: does each compute what the other wrote?

    python -m benchmarks.peers.interchange [--saelens PYTHON] [--sparsify PYTHON] [--dictionary-learning PYTHON]

Each PYTHON is the interpreter of an environment with that program. It writes checkpoints of every architecture and what
they reconstruct; interp reads them. Then interp writes every kind that the program has, and the program's own loader
reads them. The model is a tiny Llama with random weights: only its hook points and widths matter.

Printed is, for each case, the largest difference of two reconstructions as a share of the largest value. Exit status 1
if one exceeds 1e-5.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from interp.dictionaries import Dictionary, DictionaryConfig, ModelIdentity, SparseDictionary, build_dictionary
from interp.dictionaries.foreign import Claim, read_dictionaries, write_dictionaries
from interp.wrapper import HookedModel

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5
D, LATENTS, K, TOKENS = 64, 512, 16, 256
PEERS = ("saelens", "sparsify", "dictionary-learning")
MODEL = "tiny-llama"

ACTIVATIONS = {
    "relu": {"type": "relu"},
    "topk": {"type": "topk", "k": K},
    "batchtopk": {"type": "batchtopk", "k": K},
    "jumprelu": {"type": "jumprelu"},
    "gated": {"type": "gated"},
}
WRITTEN = {
    "saelens": [
        *(("sae", activation) for activation in ACTIVATIONS),
        *((kind, a) for kind in ("transcoder", "skip-transcoder") for a in ("relu", "batchtopk", "jumprelu")),
    ],
    "sparsify": [(kind, "topk") for kind in ("sae", "transcoder", "skip-transcoder")],
    "dictionary-learning": [],
}
"""Kinds and activations that a program has."""


def hooked() -> HookedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=D, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=200
    )
    return HookedModel(LlamaForCausalLM(config).eval())


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def read_theirs(folder: Path, claim: Claim, x: Tensor, peer: str) -> Iterator[tuple[str, float]]:
    """What interp makes of each checkpoint that the program wrote."""
    for path in sorted(folder.rglob("*.y.safetensors")):
        name = path.relative_to(folder).as_posix().removesuffix(".y.safetensors")
        (dictionary,) = read_dictionaries(folder / name, claim, peer).values()
        assert isinstance(dictionary, SparseDictionary)
        with torch.no_grad():
            l0 = float(dictionary.active(x).sum(-1).float().mean())
            yield f"{name} ({l0:.1f} latents a token)", difference(dictionary(x), load_file(path)["y"])


def write_ours(folder: Path, claim: Claim, x: Tensor, peer: str) -> dict[Path, Tensor]:
    """Dictionaries of every kind in the program's format: where, and what they reconstruct."""
    made = {}
    mlps = [claim.place(layer) for layer in range(claim.n_layers)]
    for kind, activation in WRITTEN[peer]:
        dictionary = _random(kind, activation, claim)
        place = folder / f"{kind} {activation}"
        write_dictionaries({dictionary.config.at: dictionary}, place, peer, mlps=mlps, model_name=MODEL)
        with torch.no_grad():
            made[place] = dictionary(x)
        _require_same(dictionary, read_dictionaries(place, claim, peer), x)
    return made


def _require_same(written: SparseDictionary, read: object, x: Tensor) -> None:
    """What we wrote, we read: on the way to the program nothing else is lost."""
    assert isinstance(read, dict)
    found: Dictionary = read[written.config.at]
    with torch.no_grad():
        assert difference(found(x), written(x)) <= TOLERANCE


def _random(kind: str, activation: str, claim: Claim) -> SparseDictionary:
    hooks = ("layers.1.resid_post",) * 2 if kind == "sae" else ("layers.1.mlp_in", "layers.1.mlp_out")
    config = DictionaryConfig.model_validate(
        {
            "kind": kind,
            "hook_in": hooks[0],
            "hook_out": hooks[1],
            "d_in": D,
            "d_out": D,
            "n_latents": LATENTS,
            "activation": ACTIVATIONS[activation],
            "model": ModelIdentity(source=MODEL, fingerprint=claim.model.fingerprint, family="llama"),
        }
    )
    dictionary = build_dictionary(config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in dictionary.state_dict().items():
            if name.endswith("threshold"):
                tensor.copy_(torch.rand_like(tensor) * 0.5 + 1.0)
            else:
                tensor.copy_(torch.randn_like(tensor) * (tensor.shape[1] ** -0.5 if tensor.ndim == 2 else 0.3))
    return dictionary


def run(peer: str, python: str, command: str, out: Path) -> None:
    module = f"benchmarks.peers.{peer.replace('-', '_')}_interchange_side"
    offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-m", module, command, out / "shape.json", out],
        cwd=ROOT,
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{peer} could not {command}:\n{done.stdout}\n{done.stderr}")


def exchange(peer: str, python: str, claim: Claim, root: Path) -> Iterator[tuple[str, float]]:
    """(case, difference) of everything that goes to and fro."""
    x = torch.randn(TOKENS, D, generator=torch.Generator().manual_seed(3)) * 2 + 0.3
    for folder in (root / "theirs", root / "ours"):
        folder.mkdir(parents=True)
        save_file({"x": x}, folder / "x.safetensors")
        shape = {"d": D, "latents": LATENTS, "k": K, "model": MODEL}
        (folder / "shape.json").write_text(json.dumps(shape), "utf-8")
    run(peer, python, "write", root / "theirs")
    for name, apart in read_theirs(root / "theirs", claim, x, peer):
        yield f"{peer} -> interp, {name}", apart
    written = write_ours(root / "ours", claim, x, peer)
    if written:
        run(peer, python, "load", root / "ours")
    for place, expected in written.items():
        (path,) = place.rglob("*y.safetensors")
        yield f"interp -> {peer}, {place.name}", difference(load_file(path)["y"], expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for peer in PEERS:
        parser.add_argument(f"--{peer}", metavar="PYTHON", help=f"of an environment with {peer}")
    given = vars(parser.parse_args())
    claim, worst = Claim(hooked(), MODEL), 0.0
    for peer in PEERS:
        python = given[peer.replace("-", "_")]
        if python is None:
            continue
        with tempfile.TemporaryDirectory(prefix="interchange-") as folder:
            for name, apart in exchange(peer, python, claim, Path(folder)):
                print(f"{apart:8.1e}  {name}", flush=True)
                worst = max(worst, apart)
    print(f"{worst:8.1e}  the largest")
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
