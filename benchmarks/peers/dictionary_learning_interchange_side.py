"""dictionary_learning's part in the interchange of dictionaries. Runs in its own environment, without `interp`.

    python -m benchmarks.peers.dictionary_learning_interchange_side write SHAPE.json OUT

Each SAE is trained for a few steps by the program's own loop, which writes ae.pt and config.json, and is loaded by its
own loader, but for classes that its loops never train, which are saved as its loop saves.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# Its requirements bring a torchvision that may be built for another torch; nothing here needs it.
sys.modules["torchvision"] = None  # type: ignore[assignment]

import torch  # noqa: E402
from dictionary_learning.dictionary import AutoEncoderNew  # noqa: E402
from dictionary_learning.trainers import GatedSAETrainer, JumpReluTrainer, StandardTrainer, TopKTrainer  # noqa: E402
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer  # noqa: E402
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer  # noqa: E402
from dictionary_learning.training import trainSAE  # noqa: E402
from dictionary_learning.utils import load_dictionary  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

STEPS = 20


def main(command: str, shape_file: Path, out: Path) -> None:
    shape = json.loads(shape_file.read_bytes())
    x = load_file(out / "x.safetensors")["x"]
    assert command == "write"
    for name, (trainer, said) in _cases(shape).items():
        torch.manual_seed(len(name))
        config = {"trainer": trainer, "activation_dim": shape["d"], "dict_size": shape["latents"], "layer": 1}
        config |= {"lm_name": shape["model"], "submodule_name": "resid_post_layer_1", "device": "cpu", **said}
        if trainer is not JumpReluTrainer:
            config["warmup_steps"] = 2
        batches = [torch.randn(128, shape["d"]) * 2 + 0.5 for _ in range(STEPS + 1)]
        normalise = name.endswith("normalised")
        steps = {"steps": STEPS, "device": "cpu", "normalize_activations": normalise, "save_dir": str(out / name)}
        trainSAE(_Data(batches, shape["d"]), [config | {"steps": STEPS}], **steps)
        _save(out, name, x, load_dictionary(str(out / name / "trainer_0"), "cpu")[0])
    _without_trainer(shape, out, x)


class _Data(list):  # type: ignore[type-arg]
    """Batches with the config of the buffer that they would come from."""

    def __init__(self, batches: list[torch.Tensor], d: int):
        super().__init__(batches)
        self.config = {"d_submodule": d, "io": "out", "ctx_len": 32}


def _cases(shape: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    k = {"k": shape["k"]}
    quick = {**k, "threshold_start_step": 2, "decay_start": STEPS - 5}
    return {
        "standard": (StandardTrainer, {"resample_steps": None, "sparsity_warmup_steps": 5}),
        "gated": (GatedSAETrainer, {"sparsity_warmup_steps": 5}),
        "jumprelu": (JumpReluTrainer, {"warmup_steps": 2, "sparsity_warmup_steps": 5, "lr": 1e-2}),
        "topk": (TopKTrainer, quick),
        "batchtopk": (BatchTopKTrainer, quick),
        "batchtopk, normalised": (BatchTopKTrainer, quick),
        "batchtopk, no threshold yet": (BatchTopKTrainer, {**quick, "threshold_start_step": 1000}),
        "matryoshka": (MatryoshkaBatchTopKTrainer, {**quick, "group_fractions": [0.25, 0.75]}),
    }


def _without_trainer(shape: dict[str, Any], out: Path, x: torch.Tensor) -> None:
    name = "standard, April update"
    folder = out / name / "trainer_0"
    folder.mkdir(parents=True)
    ae = AutoEncoderNew(shape["d"], shape["latents"])
    with torch.no_grad():
        for parameter in ae.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    torch.save(ae.state_dict(), folder / "ae.pt")
    trainer = {"dict_class": "AutoEncoderNew", "layer": 1, "lm_name": shape["model"], "submodule_name": "resid_post"}
    (folder / "config.json").write_text(json.dumps({"trainer": {**trainer, "dict_size": shape["latents"]}}), "utf-8")
    _save(out, name, x, load_dictionary(str(folder), "cpu")[0])


def _save(out: Path, name: str, x: torch.Tensor, ae: Any) -> None:
    with torch.no_grad():
        save_file({"y": ae(x).contiguous()}, out / f"{name}.y.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
