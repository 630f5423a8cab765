"""sparsify's part in the interchange of dictionaries. Runs in its own environment, and imports nothing of `interp`.

    python -m benchmarks.peers.sparsify_interchange_side write SHAPE.json OUT
    python -m benchmarks.peers.sparsify_interchange_side load SHAPE.json OUT

What reconstructs is `encode` and `decode`, with the skip path: `forward` returns the reconstruction from 4 k latents
under `multi_topk`, which is a loss of training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig

CASES = {
    "sae/layers.1": {},
    "sae of an MLP/layers.1.mlp": {},
    "multi_topk/layers.0": {"multi_topk": True},
    "transcoder/layers.1.mlp": {"transcode": True},
    "skip transcoder/layers.1.mlp": {"transcode": True, "skip_connection": True},
    "skip transcoder of a block/layers.1": {"transcode": True, "skip_connection": True},
}


def reconstruction(coder: SparseCoder, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = coder.encode(x)
        y = coder.decode(found.top_acts, found.top_indices)
        return y if coder.W_skip is None else y + x @ coder.W_skip.mT


def main(command: str, shape_file: Path, out: Path) -> None:
    shape = json.loads(shape_file.read_bytes())
    x = load_file(out / "x.safetensors")["x"]
    if command == "load":
        for run in sorted({path.parent.parent for path in out.rglob("sae.safetensors")}):
            for name, coder in SparseCoder.load_many(str(run), local=True).items():
                save_file({"y": reconstruction(coder, x)}, run / f"{name}.y.safetensors")
        return
    for name, said in CASES.items():
        torch.manual_seed(len(name))
        config = SparseCoderConfig(num_latents=shape["latents"], k=shape["k"], normalize_decoder=False, **said)
        coder = SparseCoder(shape["d"], config, dtype=torch.float32)
        with torch.no_grad():
            for tensor in coder.state_dict().values():
                tensor.copy_(torch.randn_like(tensor) * (shape["d"] ** -0.5 if tensor.ndim == 2 else 0.3))
        coder.save_to_disk(out / name)
        save_file({"y": reconstruction(SparseCoder.load_from_disk(out / name), x)}, out / f"{name}.y.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
