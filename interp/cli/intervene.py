"""`interp intervene`: hold features of a study's dictionaries at other values, and see what the model says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.console import print_json, print_line, print_table
from interp.cli.run import AsJson, StoreUrl, StudyFile, require_fitted, traced_only
from interp.errors import SpecError
from interp.spec.loading import load_study

if TYPE_CHECKING:
    from interp.circuits.generate import Generation
    from interp.circuits.intervene import Intervention, InterventionResult, Mode
    from interp.circuits.replacement_model import ReplacementModel
    from interp.spec.trace import TraceSpec

_FORM = "MLP/LATENT[@POSITIONS]"
_FEATURE = re.compile(r"^(?P<at>[^/@=]+)/(?P<latent>\d+)(@(?P<positions>[^@=]+))?(=(?P<value>[^@=]+))?$")
_SLICE = re.compile(r"^(-?\d+)?:(-?\d+)?$")
_FEATURES_SHOWN = 20


Prompt = Annotated[str, typer.Option("--prompt", help="the text to run the model on")]
Ablate = Annotated[
    list[str] | None, typer.Option("--ablate", metavar="FEATURE", help="hold a feature at 0; may be repeated")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FEATURE=VALUE", help="hold a feature at this activation; may be repeated"),
]
Scale = Annotated[
    list[str] | None,
    typer.Option(
        "--scale",
        metavar="FEATURE=FACTOR",
        help="hold a feature at so many times its activation on the prompt; may be repeated",
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(
        "--attention",
        help="frozen: attention patterns and norms stay as they are on the prompt, as in an attribution graph; "
        "iterated: the model computes them anew. Default: frozen; with --generate: iterated",
    ),
]
Mlps = Annotated[
    str | None,
    typer.Option(
        "--mlps",
        help="how MLPs respond. replacement: as features, encoded anew, plus a constant error; frozen: not at all "
        "(the direct effect: an edge of the graph); model: by themselves (with iterated attention). "
        "Default: replacement; with iterated attention: model",
    ),
]
Generate = Annotated[
    int | None, typer.Option("--generate", metavar="N", help="also let the model go on for N tokens, held so")
]
Temperature = Annotated[
    float, typer.Option("--temperature", help="of generated tokens; 0: always the most probable one")
]
Seed = Annotated[int, typer.Option("--seed", help="of generated tokens")]
Top = Annotated[int, typer.Option("--top", help="how many next tokens to show")]


def intervene(
    study: StudyFile,
    prompt: Prompt,
    ablate: Ablate = None,
    set_: Set = None,
    scale: Scale = None,
    attention: Attention = None,
    mlps: Mlps = None,
    generate: Generate = None,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    top: Top = 10,
    store: StoreUrl = None,
    as_json: AsJson = False,
) -> None:
    """Hold features at other values and see what the model says.

    The model and the traced transcoders are the study's; they must be fitted already.

    A FEATURE is MLP/LATENT@POSITIONS. Positions count the prompt's tokens from 0, BOS included (the output numbers
    them), or from its end: -1 is the last. Without @POSITIONS it is held everywhere, at new tokens too.

    \b
    --ablate layers.3.mlp/41@5       at token 5
    --set    layers.2.mlp/7=3.0      everywhere (or @all=3.0)
    --scale  layers.2.mlp/7@-1=2     at the last token
    --scale  layers.2.mlp/7@2:6=2    at tokens 2 to 5 (@2,4: at 2 and 4)
    """
    asked = Asked(_interventions(ablate, set_, scale), attention or _default_attention(generate), mlps)
    traced = traced_only(load_study(study), (prompt,))
    rm, spec = _load(traced, store)
    from interp.circuits import generate as generation
    from interp.circuits.intervene import intervene as run
    from interp.stages.trace_worker import token_ids

    ids = token_ids(rm.hooked, prompt, spec)
    options: dict[str, Any] = {"attention": asked.attention, "mlps": asked.mlps}
    generated: list[Generation] = []
    if generate is not None:
        drawn = {**options, "temperature": temperature, "seed": seed}
        generated = [generation.generate(rm, ids, held, generate, **drawn) for held in ((), asked.interventions)]
    where: Any = rm.build(ids, memory=spec.memory) if asked.attention == "frozen" else ids
    result = run(rm, where, asked.interventions, **options)
    outcome = _outcome(rm, ids, asked, result, generated, top)
    if as_json:
        print_json(outcome)
    else:
        _print(outcome)


@dataclass(frozen=True)
class Asked:
    """What the command line says."""

    interventions: tuple[Intervention, ...]
    attention: str
    mlps: str | None


def parse_feature(text: str, mode: Mode) -> Intervention:
    """An intervention from a text such as `layers.2.mlp/7@all=3.0`.

    Raises:
        SpecError: it has another form.
    """
    from interp.circuits.intervene import Intervention

    form = _FORM if mode == "ablate" else f"{_FORM}={'VALUE' if mode == 'set' else 'FACTOR'}"
    found = _FEATURE.match(text)
    try:
        if found is None or (found["value"] is None) != (mode == "ablate"):
            raise ValueError
        value = None if found["value"] is None else float(found["value"])
        positions = _positions(found["positions"] or "all")
    except ValueError:
        remedy = "such as layers.3.mlp/41@5" + ("" if mode == "ablate" else "=2.0")
        raise SpecError(f"--{mode} cannot be read", value=text, expected=form, remedy=remedy) from None
    return Intervention(found["at"], int(found["latent"]), positions, mode, value)


def _positions(text: str) -> Any:
    if text == "all":
        return "all"
    if found := _SLICE.match(text):
        return slice(*(None if bound is None else int(bound) for bound in found.groups()))
    numbers = [int(number) for number in text.split(",")]
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def _interventions(
    ablate: Sequence[str] | None, set_: Sequence[str] | None, scale: Sequence[str] | None
) -> tuple[Intervention, ...]:
    given: tuple[tuple[Mode, Sequence[str]], ...] = (
        ("ablate", ablate or ()),
        ("set", set_ or ()),
        ("scale", scale or ()),
    )
    found = tuple(parse_feature(text, mode) for mode, texts in given for text in texts)
    if not found:
        raise SpecError("there is nothing to do", expected="--ablate, --set or --scale", remedy=f"give {_FORM}")
    return found


def _default_attention(generate: int | None) -> str:
    return "frozen" if generate is None else "iterated"


def _load(study: Any, store_url: str | None) -> tuple[ReplacementModel, TraceSpec]:
    """The study's replacement model."""
    import torch

    from interp.circuits.replacement_model import ReplacementModel
    from interp.models.loading import load_model
    from interp.plan import make_plan
    from interp.stages.dictionary_sets import dictionary_set
    from interp.store import Store
    from interp.wrapper import HookedModel

    store = Store.open(store_url or study.store)
    plan = make_plan(study, store)
    require_fitted(plan)
    stage, spec, traced = plan.stage("trace"), plan.study.trace, plan.study.traced
    if stage is None or spec is None or traced is None:
        raise SpecError(
            "the study traces nothing", value=study.metadata.name, expected="transcoders among dictionaries"
        )
    inputs = {role: store.get(*place) for role, place in stage.input_artifacts().items()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hooked = HookedModel(load_model(plan.study.model, device=device, attention="eager"))
    transcoders = dictionary_set(plan.study, traced.name, inputs)
    found: Any = transcoders.load(hooked)
    return ReplacementModel(hooked, found, mlp=transcoders.mlp, bos=spec.bos, max_tokens=spec.max_tokens), spec


def _outcome(
    rm: ReplacementModel,
    ids: Sequence[int],
    asked: Asked,
    result: InterventionResult,
    generated: Sequence[Generation],
    top: int,
) -> dict[str, Any]:
    """Everything that is said, as JSON."""
    from interp.circuits.intervene import mlp_response

    def text(token: int) -> str:
        return str(rm.hooked.tokenizer.decode([token]))

    features = [
        {
            "at": f"{rm.hooked.topology.block_name(change.layer)}.mlp",
            "latent": change.latent,
            "position": change.pos,
            "token": text(ids[change.pos]),
            "before": change.before,
            "after": change.after,
        }
        for change in result.features
    ]
    outcome: dict[str, Any] = {
        "tokens": [text(token) for token in ids],
        "ids": list(ids),
        "attention": asked.attention,
        "mlps": mlp_response(asked.attention, asked.mlps),  # type: ignore[arg-type]
        "features": features,
        "unchanged": len(result.unchanged),
        "next": _next_tokens(result, top, text),
    }
    if generated:
        names = ("before", "after")
        outcome["generated"] = {
            name: {"text": done.text, "ids": done.new.tolist()} for name, done in zip(names, generated, strict=True)
        }
    return outcome


def _next_tokens(result: InterventionResult, top: int, text: Any) -> list[dict[str, Any]]:
    """The most probable next tokens, before or after, the most probable after it first."""
    before, after = (probabilities[0].cpu() for probabilities in result.probabilities())
    count = min(max(top, 1), len(before))
    chosen = set(before.topk(count).indices.tolist()) | set(after.topk(count).indices.tolist())
    order = sorted(chosen, key=lambda token: (-float(after[token]), token))
    return [
        {
            "id": token,
            "token": text(token),
            "probability_before": float(before[token]),
            "probability_after": float(after[token]),
            "logit_before": float(result.before[0, token]),
            "logit_after": float(result.after[0, token]),
        }
        for token in order
    ]


def _print(outcome: dict[str, Any]) -> None:
    print_line("prompt:  " + "  ".join(f"{pos} {token!r}" for pos, token in enumerate(outcome["tokens"])))
    print_line(f"attention: {outcome['attention']}   MLPs: {outcome['mlps']}")
    _print_features(outcome["features"])
    print_table(
        ["next token", "probability", "with", "change", "logit", "with", "change"],
        [
            (
                repr(row["token"]),
                *_before_and_after(row["probability_before"], row["probability_after"], ".4f"),
                *_before_and_after(row["logit_before"], row["logit_after"], ".3f"),
            )
            for row in outcome["next"]
        ],
        right=["probability", "with", "change", "logit"],
    )
    if generated := outcome.get("generated"):
        print_line(f"without: {generated['before']['text']!r}")
        print_line(f"with:    {generated['after']['text']!r}")


def _print_features(features: list[dict[str, Any]]) -> None:
    """Where something was changed, and how often nothing was."""
    changed = [feature for feature in features if feature["before"] != feature["after"]]
    rows = [
        (f"{f['at']}/{f['latent']}", str(f["position"]), repr(f["token"]), f"{f['before']:.4g}", f"{f['after']:.4g}")
        for f in changed[:_FEATURES_SHOWN]
    ]
    columns = ["feature", "position", "token", "activation", "held at"]
    if rows:
        print_table(columns, rows, right=["position", "activation", "held at"])
    if len(changed) > _FEATURES_SHOWN:
        print_line(f"... and {len(changed) - _FEATURES_SHOWN} more")
    if unchanged := len(features) - len(changed):
        print_line(
            f"{unchanged} of {len(features)} changed nothing: a feature that is not active on the prompt is 0 already, "
            "and stays 0 when it is scaled"
        )


def _before_and_after(before: float, after: float, form: str) -> tuple[str, str, str]:
    return f"{before:{form}}", f"{after:{form}}", f"{after - before:+{form}}"
