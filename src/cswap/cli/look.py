"""The commands that look at networks and artifacts: eval, explain, report, export, support, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cswap.cli import render
from cswap.cli.options import (
    ArtifactDir,
    DeviceOption,
    Force,
    ImageSize,
    JsonFlag,
    MaybeData,
    MaybeModel,
    Mean,
    ModelArgs,
    ModelFlags,
    OriginalFlags,
    Quiet,
    Std,
    Trust,
    other_data,
    show_or_print,
    source_of,
)
from cswap.cli.progress import ProgressLine
from cswap.errors import InputError
from cswap.pipeline import Machine


def evaluate(
    folder: ArtifactDir,
    original: OriginalFlags,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    quiet: Quiet = False,
) -> None:
    """Quality and cost, original and pruned, side by side."""
    from cswap import pipeline

    with ProgressLine(quiet) as watcher:
        figures = pipeline.evaluate(folder, machine=Machine(device), watcher=watcher, **original.given)
    show_or_print(as_json, figures, render.side_by_side)


def explain(
    folder: ArtifactDir,
    original: OriginalFlags,
    group: Annotated[str | None, typer.Option("--group", help="one group")] = None,
    unit: Annotated[int | None, typer.Option("--unit", help="one unit of the group")] = None,
    class_: Annotated[str | None, typer.Option("--class", help="what one class needs, and what hurts it")] = None,
    most: Annotated[int, typer.Option("--most", help="rows to show")] = 30,
    images: Annotated[
        Path | None, typer.Option("--images", help="one unit: write the images that activate it most to this PNG")
    ] = None,
    force: Force = False,
    as_json: JsonFlag = False,
) -> None:
    """Why a unit was kept or removed: effects and p-values by class."""
    from cswap.artifacts.folder import open_artifact, told_by
    from cswap.report.explain import explanation
    from cswap.report.facts import removed_units

    if most < 1:
        raise InputError(f"most: expected at least 1 row, got {most}")
    artifact = open_artifact(folder)
    with told_by(folder):
        gone = removed_units(artifact)
        head = {k: artifact.manifest[k] for k in ("target", "ratio", "steps")}
        told = explanation(artifact.path, group, unit, class_, gone) | head
    if images is not None:
        if group is None or unit is None:
            raise InputError("images: --images needs --group and --unit")
        from cswap.artifacts.files import new_file
        from cswap.report.activations import gallery

        new_file("images", images, force)
        seen = gallery(artifact, groups=[group], **original.given)
        told["images"] = {"file": str(images), "samples": seen.sheet(group, unit, images)}
    show_or_print(as_json, told, lambda d: render.explanation(d, most))


def report(
    folder: ArtifactDir,
    original: OriginalFlags,
    out: Annotated[Path | None, typer.Option("--out", help="the file to write (report.html in the artifact)")] = None,
    images: Annotated[
        int, typer.Option("--images", help="show this many calibration images that activate a unit most")
    ] = 0,
    force: Force = False,
    as_json: JsonFlag = False,
) -> None:
    """One self-contained report.html from an artifact: opens offline."""
    from cswap.artifacts.folder import open_artifact
    from cswap.report.activations import gallery
    from cswap.report.page import write_report

    shown = None
    if images:
        shown = gallery(open_artifact(folder), most=images, **original.given).sprite()
    file = write_report(folder, out, images=shown, force=force)
    show_or_print(as_json, {"report": str(file)}, lambda d: print(d["report"]))


def export(
    folder: ArtifactDir,
    format: Annotated[str, typer.Option("--format", help="onnx or pt2")],
    out: Annotated[Path | None, typer.Option("--out", help="the file to write (model.FORMAT in the artifact)")] = None,
    data: MaybeData = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    model: MaybeModel = None,
    model_arg: ModelArgs = None,
    samples: Annotated[int, typer.Option("--samples", help="held-out inputs to check it on")] = 64,
    trust: Trust = False,
    force: Force = False,
    as_json: JsonFlag = False,
) -> None:
    """ONNX or torch.export's .pt2, compared with the PyTorch module on real inputs before it is written."""
    from cswap import pipeline

    told = pipeline.export(
        folder, format, out, source=source_of(model, model_arg, None), data=other_data(data, image_size, mean, std), trust=trust, force=force,
        samples=samples,
    )  # fmt: skip
    show_or_print(as_json, told, render.exported)


def support(
    net: ModelFlags,
    image_size: ImageSize = None,
    channels: Annotated[int, typer.Option("--channels", help="channels of the input")] = 3,
    tokens: Annotated[int | None, typer.Option("--tokens", help="length of the input, for a model of tokens")] = None,
    as_json: JsonFlag = False,
) -> None:
    """What can be pruned in this model, what cannot, and why."""
    from cswap.report.support import support_report

    show_or_print(as_json, support_report(net.source, image_size, channels, tokens), render.support)


def demo(
    out: Annotated[Path, typer.Option("--out", help="where curve, artifact and figures go")] = Path("cswap-demo"),
    seed: Annotated[int, typer.Option("--seed", help="training, split and calibration")] = 0,
    as_json: JsonFlag = False,
    quiet: Quiet = False,
    force: Force = False,
) -> None:
    """Train a small ResNet on scikit-learn's digits and prune it by C-SWAP, magnitude and random."""
    from cswap.demo import run_demo

    with ProgressLine(quiet) as watcher:
        result = run_demo(out, seed=seed, force=force, tell=watcher.line)
    data = {"curves": result.curves, "sauce": result.sauce, "seconds": result.seconds, "out": str(out)}
    show_or_print(as_json, data, render.demo)
