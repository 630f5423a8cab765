"""Settings that every use of Ray here shares, and Ray's failures in our words."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

import ray.data
from ray.exceptions import RayActorError, RayError, RayTaskError

from interp.engine.resources import Share
from interp.errors import EngineError, InterpError

RETRIES = 3
"""How often a piece of work is done again after the process that did it has died."""


@contextlib.contextmanager
def data_settings() -> Iterator[None]:
    """Ray Data's settings for pipelines that are made inside: ordered, quiet, one row to a block.

    A block of one row is read straight from shared memory, and the stream is held back by the row. On one machine a
    stream may fill a quarter of the shared memory, for every process that reads it counts those pages as its own. On
    more nodes Ray's own limit holds, half of what there is at each moment: nodes come and go.
    """
    context = ray.data.DataContext.get_current().copy()
    if len([node for node in ray.nodes() if node["Alive"]]) == 1:
        shared = ray.cluster_resources().get("object_store_memory", 0)
        limits = ray.data.ExecutionResources.for_limits(object_store_memory=shared // 4)
        context.execution_options.resource_limits = limits
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with ray.data.DataContext.current(context):
        yield


def through_actors(
    source: ray.data.Dataset, kind: type, arguments: tuple[Any, ...], actors: int, share: Share
) -> ray.data.Dataset:
    """Every block of `source` through one of `actors` processes that hold a `kind(*arguments)`."""
    with warnings.catch_warnings():
        # Deprecated, and the only way to say it: by default a batch that kills its actor is repeated for ever.
        warnings.filterwarnings("ignore", message=".*ray_remote_args_fn", category=DeprecationWarning)
        return source.map_batches(
            kind,
            fn_constructor_args=arguments,
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(min_size=actors, max_size=actors),
            num_cpus=share.cpus,
            num_gpus=share.gpus or None,
            ray_remote_args_fn=lambda: {"max_task_retries": RETRIES},
        )


@contextlib.contextmanager
def ray_failure(what: str) -> Iterator[None]:
    """Raise what went wrong in a process as what it was, or as an EngineError that says which work it was."""
    try:
        yield
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, InterpError):
            raise cause from None
        raise EngineError(f"{what} failed in a worker", value=own_part(error)) from error
    except RayActorError as error:
        raise EngineError(
            f"{what} lost its worker, and so did every one of {RETRIES} more tries",
            value=own_part(error),
            remedy="where a process was killed, most often memory ran out: smaller batches, fewer workers",
        ) from error
    except RayError as error:
        raise EngineError(f"{what} failed", value=f"{type(error).__name__}: {error}"[:2000]) from error


def own_part(error: Exception) -> str:
    """What the work itself raised: without colours, and without what Ray says around it."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return text.partition("\n\nThe above exception was the direct cause")[0].strip()[-2000:]


def on_one_process(threads: int) -> None:
    """Called once in each process of a job: keep to the share of cores that it has been given."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
