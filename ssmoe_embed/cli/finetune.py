"""`ssmoe finetune`."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from ssmoe_embed.cli import options as opts


def finetune(
    base: opts.LanguageModel,
    data: Annotated[Path, Option(help="JSON lines: prompt and completion, messages, instruction and output, or text.")],
    output: opts.NewFolder,
    routing: Annotated[
        str,
        Option(
            help="Routing under which it is trained: original, ssmoe, ev, average-ev, or one of docs/routers.md, such as "
            "usmoe:causal=true."
        ),
    ] = "ssmoe",
    alpha: opts.Share = None,
    top_c: opts.TopC = None,
    refresh_routers: Annotated[
        int, Option(min=0, help="Steps between new spectral routers; 0 keeps the first ones.")
    ] = 0,
    template: Annotated[str, Option(help="How instructions become prompts: alpaca or none.")] = "alpaca",
    optimizer: Annotated[str, Option(help="adamw, adamw-8bit, galore or lora.")] = "adamw",
    rank: Annotated[int | None, Option(min=1, help="Rank of LoRA.  [default: 16]")] = None,
    galore: Annotated[
        str | None,
        Option(
            metavar="NAME=VALUE,…",
            help="GaLore: rank (128), update_gap (200), scale (0.25), side (std), basis (svd), carry_moments (false), "
            "bits (32).",
        ),
    ] = None,
    layerwise: Annotated[
        bool, Option("--layerwise", help="GaLore: update each weight when its gradient is there, to save memory.")
    ] = False,
    decouple: Annotated[
        str | None,
        Option(
            metavar="q=N,…",
            help="Train what experts share apart from what is their own (SD-MoE): q (8), refresh_every (16), "
            "common (average), strict (false).",
        ),
    ] = None,
    train_router: Annotated[
        str | None,
        Option(help="Train the routers alone: hyper, an embedding per layer behind a fixed network (HyperRouter)."),
    ] = None,
    learning_rate: Annotated[float, Option(help="Peak learning rate.")] = 2e-5,
    balance: Annotated[float, Option(min=0, help="Weight of the load-balancing loss.")] = 0.0,
    similarity: Annotated[
        float,
        Option(min=0, help="Weight of the loss of experts that answer the tokens they share alike (SimSMoE)."),
    ] = 0.0,
    steps: Annotated[int | None, Option(min=1, help="Optimizer steps; by default one pass over the data.")] = None,
    epochs: Annotated[float, Option(help="Passes over the data, where no steps are given.")] = 1.0,
    batch_size: Annotated[int, Option(min=1, help="Batch size: examples per forward pass.")] = 8,
    accumulation: Annotated[int, Option(min=1, help="Forward passes per step.")] = 1,
    max_length: Annotated[int, Option(min=8, help="Tokens of an example; longer ones are refused.")] = 512,
    packing: Annotated[bool, Option("--packing", help="Put several short examples into one row.")] = False,
    checkpointing: Annotated[
        bool, Option("--checkpointing", help="Compute activations twice, which saves memory.")
    ] = False,
    dtype: Annotated[
        str,
        Option(
            help="Dtype of the weights that are trained: float32, or bfloat16, in which updates below about 1/256 of a "
            "weight are lost to rounding."
        ),
    ] = "float32",
    save_every: Annotated[int, Option(min=1, help="Steps between checkpoints.")] = 100,
    eval_every: Annotated[int, Option(min=0, help="Steps between evaluations; 0 for none.")] = 0,
    eval_tasks: Annotated[
        list[str] | None, Option(help="paper, offline, or tasks of lm-evaluation-harness.  [default: offline]")
    ] = None,
    eval_limit: Annotated[int | None, Option(min=1, help="Only the first examples of each task.")] = None,
    seed: Annotated[int, Option(help="Seed of everything that is drawn.")] = 0,
    device_map: opts.DeviceMap = None,
    revision: opts.Revision = None,
    trust_remote_code: opts.TrustRemoteCode = False,
    overwrite: opts.Replace = False,
    quiet: opts.Quiet = False,
) -> None:
    """Fine-tune a language model under a routing.

    Writes an ordinary transformers checkpoint with its spectral routers, which `ssmoe lm-eval`, `drop` and `build` take. Run
    again, an interrupted command resumes from its last checkpoint.

    Example: ssmoe finetune allenai/OLMoE-1B-7B-0924 --data alpaca_data.json --optimizer galore --steps 2000 --output tuned
    """
    from ssmoe_embed.language_model import RoutingSettings
    from ssmoe_embed.training import DecouplingSettings, FinetuneSettings, GaLoreSettings
    from ssmoe_embed.training import finetune as train

    unused = {
        "--rank": ("--optimizer", optimizer, rank is not None and optimizer != "lora"),
        "--galore": ("--optimizer", optimizer, galore is not None and optimizer != "galore"),
        "--alpha": ("--routing", routing, alpha is not None and routing != "ssmoe"),
        "--top-c": ("--routing", routing, top_c is not None and routing not in ("ssmoe", "ev", "average-ev")),
        "--eval-tasks": ("--eval-every", 0, bool(eval_tasks) and not eval_every),
        "--eval-limit": ("--eval-every", 0, eval_limit is not None and not eval_every),
    }
    for name, (other, value, is_unused) in unused.items():
        if is_unused:
            raise ValueError(f"{name} has no effect with {other} {value}; leave it out, or change {other}.")
    routing_settings: dict[str, Any] = opts.given(alpha=alpha, top_c=top_c)
    settings = FinetuneSettings(
        routing=routing,
        routing_settings=RoutingSettings(**routing_settings),
        refresh_routers=refresh_routers,
        template=template,  # type: ignore[arg-type]  # parsed there, as is the optimizer
        optimizer=optimizer,  # type: ignore[arg-type]
        galore=GaLoreSettings(**{"seed": seed} | _named("--galore", galore or "", GaLoreSettings)),
        layerwise=layerwise,
        decouple=None if decouple is None else DecouplingSettings(**_named("--decouple", decouple, DecouplingSettings)),
        train_router=train_router,  # type: ignore[arg-type]
        learning_rate=learning_rate,
        balance=balance,
        similarity=similarity,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        accumulation=accumulation,
        max_length=max_length,
        packing=packing,
        checkpointing=checkpointing,
        dtype=dtype,
        save_every=save_every,
        eval_every=eval_every,
        eval_tasks=tuple(eval_tasks or ["offline"]),
        eval_limit=eval_limit,
        seed=seed,
        **opts.given(lora_rank=rank),
    )
    loading = opts.hub_loading(device_map, revision, trust_remote_code)
    found = train(base, data, output, settings, overwrite=overwrite, progress=not quiet, **loading)
    losses = [row["loss"] for row in found.log if "loss" in row]
    learned = f", loss {losses[0]:.3f} at first and {losses[-1]:.3f} at last" if losses else ""
    typer.echo(f"{output}: {found.steps} steps{learned}")


def _named(option: str, text: str, kind: type[Any]) -> dict[str, Any]:
    """Settings of a dataclass as NAME=VALUE, several with commas; their types are those of the defaults."""
    defaults = {one.name: one.default for one in fields(kind)}
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or name not in defaults:
            raise ValueError(f"{option} {part!r} is not known; write NAME=VALUE, with {', '.join(defaults)} as names.")
        default = defaults[name]
        try:
            as_read = default if isinstance(default, str) else json.loads(value)
        except json.JSONDecodeError:
            as_read = None
        if not isinstance(as_read, (int, float) if isinstance(default, float) else type(default)) or (
            isinstance(as_read, bool) != isinstance(default, bool)
        ):
            raise ValueError(f"{option} {part!r} is no {type(default).__name__}, such as {name}={json.dumps(default)}.")
        found[name] = value if isinstance(default, str) else as_read
    return found
