"""`ssmoe evaluate`, and `ssmoe submit`, which makes a leaderboard submission of its results."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer import Argument, Option

from ssmoe_embed.cli import options as opts

if TYPE_CHECKING:
    from ssmoe_embed.evaluation.mteb.runner import EvaluationReport, Failure
    from ssmoe_embed.evaluation.results.finished import Finished


def evaluate(
    models: Annotated[
        list[str] | None,
        Argument(metavar="MODEL...", help="Folders, hub ids or recipe names; name them before the options."),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        Option(
            help="paper, offline, paper-vision, offline-vision, a benchmark such as 'MTEB(eng, v2)', or tasks of mteb.  "
            "[default: offline]"
        ),
    ] = None,
    methods: Annotated[list[str] | None, Option(help=f"{opts.METHODS}; by default the model's own.")] = None,
    prompts: Annotated[
        list[str] | None, Option(help="Templates by name or with {text}; by default the model's own.")
    ] = None,
    dataset_dir: opts.DatasetDir = None,
    corrupt: Annotated[
        list[str] | None,
        Option(
            help="none, replace@RATE, insert@RATE, or ladder: clean texts and rising rates; for images gaussian@, uniform@ "
            "or salt-pepper@STRENGTH, or image-ladder.  [default: none]"
        ),
    ] = None,
    output: opts.ResultFolderTo = Path("results"),
    routing: Annotated[
        list[str] | None,
        Option(
            help="Routings of docs/routers.md, such as usmoe, for methods that the mix does not route; own: the model's."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, Option(help="Further settings, such as hidden_layer=-2 calibration=whiten.")
    ] = None,
    baselines: Annotated[
        list[str] | None,
        Option(
            help="Baselines to measure too: tfidf-words, tfidf-chars, bm25, minilm, chance, random-weights; of each MODEL "
            "mean, echo, metaeol, token-prepending, embed-filter, aligned-wva, idf-router, codes."
        ),
    ] = None,
    train_corrupt: Annotated[
        bool,
        Option("--train-corrupt/--no-train-corrupt", help="Corrupt the texts that classifiers learn from too."),
    ] = True,
    predictions: Annotated[
        bool | None,
        Option("--predictions/--no-predictions", help="Keep predictions; by default those of the offline tasks."),
    ] = None,
    overwrite: opts.MeasureAgain = False,
    batch_size: opts.BatchSize = 32,
    device: opts.Device = None,
    dtype: opts.Dtype = None,
    device_map: opts.DeviceMap = None,
    load_in_4bit: Annotated[bool, Option("--load-in-4bit", help="Load the base model in 4 bits.")] = False,
    trust_remote_code: opts.TrustRemoteCode = False,
    feature_memory: Annotated[
        float, Option(min=0, help="GiB of features kept in memory for methods that share a forward pass.")
    ] = 2.0,
    feature_disk: Annotated[float, Option(min=0, help="GiB kept on disk beyond that, in the result folder.")] = 16.0,
    quiet: opts.Quiet = False,
) -> None:
    """Measure models and methods on tasks of mteb.

    Methods that share a forward pass are measured together. Every result is saved at once: run again, the same command
    resumes where it was interrupted, and another command adds its results. The summary is in summary.md, summary.csv,
    heatmap.png and slopes.png.

    Example: ssmoe evaluate ssmoe/tiny --tasks offline --methods router smoe moee ev ssmoe --corrupt none replace@0.1 -o out
    """
    from ssmoe_embed.common.lazy import require_mteb

    require_mteb()
    from ssmoe_embed.evaluation.results.finished import Finished, data_state, find_finished, note_finished
    from ssmoe_embed.evaluation.results.folder import ResultFolder

    if not models and not baselines:
        raise ValueError(
            "There is nothing to evaluate; name a MODEL such as ssmoe/tiny before the options, or --baselines."
        )
    request = {
        "models": [str(Path(name).resolve()) if Path(name).is_dir() else name for name in models or ()],
        "tasks": tasks,
        "runs": [methods, prompts, corrupt, settings, train_corrupt, routing],
        "baselines": baselines,
        "dataset_dir": None if dataset_dir is None else data_state(dataset_dir),
        "loading": [dtype, device_map, load_in_4bit, trust_remote_code],
        "options": [predictions, batch_size],
    }
    known = None if overwrite else find_finished(ResultFolder(output), request, models or ())
    if known is not None:
        _show(known, 0, ())
        return
    from ssmoe_embed.evaluation.mteb import runner
    from ssmoe_embed.evaluation.mteb.passes import GIB
    from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions
    from ssmoe_embed.evaluation.mteb.runs import grid, parse_settings
    from ssmoe_embed.evaluation.results.summary import write_summary
    from ssmoe_embed.evaluation.tasks.finding import find_tasks
    from ssmoe_embed.evaluation.tasks.local_data import LocalData, use_local

    runs = grid(
        methods,
        prompts,
        corrupt or ("none",),
        parse_settings(settings or ()),
        routings=routing,
        train_corrupt=train_corrupt,
    )
    new = not output.exists()
    chosen = find_tasks(tasks or ("offline",))
    if dataset_dir is not None:
        chosen = [use_local(task, LocalData(dataset_dir)) for task in chosen]

    def summarise(report: EvaluationReport) -> None:
        write_summary(report.folder, plots=False)

    report = runner.evaluate(
        models or (),
        chosen,
        runs,
        output,
        baselines=baselines or (),
        options=EvaluationOptions(
            batch_size=batch_size,
            overwrite=overwrite,
            predictions=predictions,
            memory=int(feature_memory * GIB),
            scratch=int(feature_disk * GIB),
            progress=not quiet,
        ),
        after_task=summarise,
        trust_remote_code=trust_remote_code,
        **opts.given(load_in_4bit=load_in_4bit or None),
        **opts.embedding_loading(device, dtype, device_map),
    )
    nothing = new and not report.done
    if nothing:
        shutil.rmtree(output, ignore_errors=True)
    found = Finished(report.folder, report.kept, () if nothing else tuple(write_summary(report.folder)))
    _show(found, report.done, report.failures)
    if report.failures:
        raise typer.Exit(1)
    note_finished(replace(found, kept=report.kept + report.done), request, models or ())


def _show(found: Finished, done: int, failures: Sequence[Failure]) -> None:
    """Print the means, and what failed."""
    from ssmoe_embed.evaluation.results.summary import means, score_tables

    for table in score_tables(found.folder.scores()):
        Console().print(means(table).rich())
    errors = Console(stderr=True)
    errors.print(
        "; ".join([f"{done} measured, {found.kept} kept from before", ", ".join(map(str, found.written))]),
        style="dim",
        soft_wrap=True,
    )
    incomplete = found.folder.incomplete()
    if incomplete:
        errors.print(
            f"Not in the tables: {len(incomplete)} results that lack some of what is asked of their task, such as "
            f"{incomplete[0]}; evaluating that model on that task again completes them.",
            style="yellow",
            soft_wrap=True,
        )
    for failure in failures:
        errors.print(f"Failed: {failure}", style="red", markup=False, soft_wrap=True)


def submit(
    results: Annotated[Path, Argument(metavar="DIR", help="Result folder of `ssmoe evaluate`.")],
    output: opts.NewFolder,
    tasks: Annotated[
        list[str] | None,
        Option(help="The benchmark, or tasks: all must have been measured.  [default: 'MTEB(eng, v2)']"),
    ] = None,
    model: Annotated[str | None, Option("--model", "-m", help="Which of the measured models.")] = None,
    revision: Annotated[str | None, Option(help="Which of its revisions.")] = None,
    mock_run: Annotated[
        bool, Option("--mock-run/--no-mock-run", help="Load the model and run mteb's mock tasks.")
    ] = True,
    device: opts.Device = None,
    dtype: opts.Dtype = None,
    overwrite: opts.Replace = False,
) -> None:
    """Prepare a submission to mteb's leaderboard.

    It creates a folder; nothing is uploaded.

    Only a hub model's own settings on clean texts are taken, and only a complete benchmark. See docs/leaderboard.md.

    Example: ssmoe submit results --tasks 'MTEB(eng, v2)' --model ORG/NAME --output submission
    """
    from ssmoe_embed.common.lazy import require_mteb

    opts.check_results(results)
    require_mteb()
    from ssmoe_embed.evaluation.leaderboard import prepare_submission
    from ssmoe_embed.evaluation.mteb.models import load_encoder
    from ssmoe_embed.evaluation.results.folder import ResultFolder
    from ssmoe_embed.evaluation.tasks.finding import find_tasks

    def encoder(name: str, commit: str) -> Any:
        return load_encoder(name, revision=commit, **opts.given(device=device, dtype=dtype))

    made = prepare_submission(
        ResultFolder(results),
        output,
        find_tasks(tasks or ["MTEB(eng, v2)"]),
        model=model,
        revision=revision,
        load=encoder if mock_run else None,
        overwrite=overwrite,
    )
    lines = [
        f"{made.folder}: {made.model} at {made.revision}, {len(made.tasks)} tasks, measured with mteb {made.version}."
    ]
    if made.unknown:
        lines.append(f"Fill in by hand in ssmoe_models.py: {', '.join(made.unknown)}.")
    if not made.mock_run:
        lines.append("The mock run was left out; a pull request to mteb needs it.")
    lines += ["Next: docs/leaderboard.md, and when the model is in mteb:", f"  {made.command}"]
    Console().print(Text("\n".join(lines)), soft_wrap=True)
