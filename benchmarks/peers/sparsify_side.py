"""sparsify's own trainer on a Hugging Face model, as its command line drives it. Runs in sparsify's environment.

    python -m benchmarks.peers.sparsify_side BASE REQUEST.json OUT

The model is loaded without its head, as sparsify does for its default loss; one forward pass, to the end, serves all
hook points. Defaults of sparsify throughout (learning rate by its rule, unit decoder rows, no AuxK), but Adam unless
`optimizer` says signum, and a warm-up that ends within the run: its 1,000 steps are more than the run has.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from datasets import Dataset
from sparsify import SaeConfig, SaeTrainer, TrainConfig
from transformers import AutoModel

from benchmarks.peers.training import Clock, Request, arguments, finish, token_rows, write_plain


def main() -> None:
    work, asked, out = arguments()
    rows = token_rows(work, asked)
    clock = Clock()
    model = AutoModel.from_pretrained(work / "model", dtype=torch.float32)
    dataset = Dataset.from_dict({"input_ids": rows.tolist()}).with_format("torch")
    config = TrainConfig(
        SaeConfig(num_latents=asked.latents, k=asked.k),
        batch_size=asked.batch_tokens // rows.shape[1],
        optimizer=asked.options.get("optimizer", "adam"),
        lr_warmup_steps=asked.warmup,
        init_seeds=[asked.seed],
        hookpoints=[f"layers.{layer}" for layer in asked.layers],
        save_every=10**9,
        save_dir=os.fspath(out),
        run_name="own",
        log_to_wandb=False,
    )
    trainer = SaeTrainer(config, dataset, model)
    clock.start()
    trainer.fit()
    figures = clock.figures(asked)
    for layer in asked.layers:
        sae = trainer.saes[f"layers.{layer}"]
        write_plain(
            out,
            layer,
            lambda x, sae=sae: sae(x).sae_out,
            w_enc=sae.encoder.weight,
            b_enc=sae.encoder.bias,
            w_dec=sae.W_dec,
            b_dec=sae.b_dec,
            k=asked.k,
            pre_bias=True,
        )
    finish(out, figures, settings(config, asked), ("eai-sparsify",))


def settings(config: TrainConfig, asked: Request) -> dict[str, Any]:
    """What its figures are figures of."""
    adam = config.optimizer == "adam"
    return {
        "optimizer": config.optimizer,
        "lr": (2e-4 if adam else 5e-3) / (asked.latents / 2**14) ** 0.5,
        "schedule": f"{asked.warmup} warm-up steps, then linear to 0" if adam else "schedule-free",
        "auxk": config.auxk_alpha,
        "model": "AutoModel, whole forward pass without head",
    }


if __name__ == "__main__":
    main()
