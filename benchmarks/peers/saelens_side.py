"""SAELens' own runner on a Hugging Face model. Runs in SAELens' environment.

    python -m benchmarks.peers.saelens_side BASE REQUEST.json OUT

`LanguageModelSAETrainingRunner` with `model_class_name="AutoModelForCausalLM"`, its way without TransformerLens' own
models: the forward pass stops after the hooked block. One run trains at one hook point; several layers are one run
after the other. Defaults of SAELens throughout (Adam 3e-4, constant, AuxK 1, buffer mixed by halves), but
`n_batches_in_buffer`: the default holds fewer tokens than one training batch in contexts of 128, and does not run. The
tutorial's 64 is used: 64 x 128 tokens, the smallest shuffle that runs, and the fastest.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from datasets import Dataset
from sae_lens import (
    SAE,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    TopKTrainingSAEConfig,
)
from safetensors.torch import load_file

from benchmarks.peers.training import Clock, Request, arguments, finish, token_rows, write_plain

BATCHES_IN_BUFFER = 64


def train(work: Path, asked: Request, dataset: Dataset, layer: int, out: Path, clock: Clock) -> dict[str, Any]:
    """The figures of one run; its files are in `out`."""
    context = len(dataset[0]["input_ids"])
    config = LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(d_in=asked.options["d_model"], d_sae=asked.latents, k=asked.k),
        model_name=os.fspath(work / "model"),
        model_class_name="AutoModelForCausalLM",
        hook_name=f"model.layers.{layer}",
        dataset_path="token-ids",
        is_dataset_tokenized=True,
        context_size=context,
        prepend_bos=False,
        n_batches_in_buffer=asked.options.get("n_batches_in_buffer", BATCHES_IN_BUFFER),
        store_batch_size_prompts=asked.batch_tokens // context,
        train_batch_size_tokens=asked.batch_tokens,
        training_tokens=asked.tokens,
        seed=asked.seed,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=os.fspath(out / "own" / f"layer_{layer}"),
        verbose=False,
    )
    runner = LanguageModelSAETrainingRunner(config, override_dataset=dataset)
    clock.start()
    runner.run()
    figures = clock.figures(asked)
    saved = load_file(out / "own" / f"layer_{layer}" / "sae_weights.safetensors")
    loaded = SAE.load_from_disk(out / "own" / f"layer_{layer}")
    write_plain(
        out,
        layer,
        loaded,
        w_enc=saved["W_enc"].T,
        b_enc=saved["b_enc"],
        w_dec=saved["W_dec"],
        b_dec=saved["b_dec"],
        k=asked.k,
        pre_bias=loaded.cfg.apply_b_dec_to_input,
    )
    return figures


def main() -> None:
    work, asked, out = arguments()
    # The mixing buffer ends with half of itself left over: as many contexts more are there for it to read.
    ids = token_rows(work, asked).tolist()
    dataset = Dataset.from_dict({"input_ids": ids + ids[: 2 * BATCHES_IN_BUFFER]})
    clock = Clock()
    runs = [train(work, asked, dataset, layer, out, clock) for layer in asked.layers]
    figures = runs[-1]
    if len(runs) > 1:
        wall, cpu = (sum(run[name] for run in runs) for name in ("wall_s", "cpu_s"))
        rates = {"tokens_per_s": round(asked.tokens / wall), "tokens_per_cpu_s": round(asked.tokens / cpu)}
        figures = {**figures, "wall_s": round(wall, 3), "cpu_s": round(cpu, 3), **rates}
    settings = {
        "optimizer": "adam",
        "lr": 3e-4,
        "schedule": "constant",
        "auxk": 1.0,
        "n_batches_in_buffer": asked.options.get("n_batches_in_buffer", BATCHES_IN_BUFFER),
        "model": "AutoModelForCausalLM, stopped after the hooked block",
    }
    finish(out, figures, settings, ("sae-lens",))


if __name__ == "__main__":
    main()
