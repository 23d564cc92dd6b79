"""What a person sees while a run goes on."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hyperfed.report.tables import human_bytes, percent


def follow(make: Callable[[Callable[[dict[str, Any]], None]], Any], console: Console | None = None) -> Any:
    """Make an experiment, run it with a progress bar (plain lines where there is no terminal); returns the experiment."""
    from hyperfed.run.board import tensorboard

    console = console or Console(highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rounds"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[last]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading", total=None, last="")
        boards: list[Callable[[dict[str, Any]], None]] = []

        def listen(line: dict[str, Any]) -> None:
            for board in boards:
                board(line)
            if line.get("event") == "skipped":
                console.print(f"round {line['round']}: {line['message']}")
                return
            bar.update(task, completed=line["round"])
            if "before" in line:
                text = describe(line)
                bar.update(task, last=text)
                if not console.is_terminal:
                    console.print(f"{experiment.folder.name}  round {line['round']}/{experiment.config.rounds}  {text}")

        experiment = make(listen)
        boards.append(tensorboard(experiment.folder, experiment.number + 1))
        bar.update(task, description=experiment.folder.name, total=experiment.config.rounds, completed=experiment.number)
        begun = experiment.number
        if 0 < begun < experiment.config.rounds:
            console.print(f"{experiment.folder.name}  going on after round {begun}")
        last = experiment.run()
    told = "complete before, nothing was run (delete its folder to play it anew):  " if begun >= experiment.config.rounds else ""
    console.print(f"[bold]{experiment.folder.name}[/bold]  {told}{describe(last)}")
    console.print(f"files: {experiment.folder}")
    return experiment


def describe(line: dict[str, Any]) -> str:
    """One evaluation in words: personal accuracy over all clients (mean, weighted by test samples) and traffic so far."""
    text = f"accuracy {percent(line['before']['weighted'])}"
    if line["after"]:
        text += f", after fine-tuning {percent(line['after']['weighted'])}"
    return f"{text}, {human_bytes(line['bytes'])} sent, {line['cpu_seconds']:.0f} CPU s"
