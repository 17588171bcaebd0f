"""The command line: `ssad VERB`. Verbs import what they need when they run, so that `--help` answers at once."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssad_ray.errors import ConfigError, InspectionError

if TYPE_CHECKING:
    from ssad_ray.pipelines.run import Announce, Run

_ROLES = ("floor", "detector", "segmenter", "yardstick")
_SHOWN = ("image_auroc", "pixel_auroc", "pixel_ap", "pooled_iou", "map_10", "map_30", "map_50", "tianchi_score")
_NUM_SHOWN = 4
_DEMO = ("detector.draem.training.steps=200", "segmenter.unet.training.steps=200")  # within five minutes on two cores

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class Protocol(StrEnum):
    """Which images train, which arrive in the stream, which judge."""

    ROUTINE1 = "routine1"
    ROUTINE1_FULL_TEST = "routine1_full_test"
    FULL = "full"
    ROUTINE2 = "routine2"


Data = Annotated[str | None, typer.Option(help="Folder, manifest (CSV, Parquet) or URI of the images.")]
Out = Annotated[Path, typer.Option(help="Run folder; the same folder again goes on where it was stopped.")]
ProtocolOption = Annotated[
    Protocol | None, typer.Option(help="How images are shared out to train, online and test; full by default.")
]
Config = Annotated[Path | None, typer.Option(help="YAML file with config fields.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=V", help="One config field; may be repeated.")]
SetResource = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=V", help="One field of resources; may be repeated.")
]
Seed = Annotated[int | None, typer.Option(help="Every random stream derives from it.", min=0)]
Model = Annotated[str | None, typer.Option(help="Artifact of the run; the champion by default.")]
InitFrom = Annotated[
    Path | None, typer.Option(help="Start from this artifact of another product; it is judged beside the new ones.")
]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster: auto, or host:port of its head; none: this machine alone.")
]


@app.callback()
def ssad() -> None:
    """Find and outline defects, learnt from good images alone."""


@app.command()
def demo(
    out: Out = Path("runs/demo"), config: Config = None, set_: Set = None, seed: Seed = None, address: Address = None
) -> None:
    """Run the whole loop on a synthetic product, by default with fewer training steps."""
    from ssad_ray.datasets.synthetic import write_synthetic
    from ssad_ray.pipelines.prepare import refuse_place
    from ssad_ray.pipelines.run import config_of

    is_new = config is None and config_of(out) is None
    run = _open(out, config, [*(_DEMO if is_new else ()), *(set_ or ())], seed)
    refuse_place(run)
    data_path = out / "data"
    with run.locked():
        if not data_path.exists():
            partial = data_path.with_name("data.partial")
            shutil.rmtree(partial, ignore_errors=True)
            write_synthetic(partial, seed=run.config.seed)
            partial.replace(data_path)
    _loop(run, str(data_path), None, address, with_yardstick=False)


@app.command()
def catalog(
    data: Annotated[str, typer.Argument(help="Folder, manifest (CSV, Parquet) or URI.")],
    out: Annotated[str | None, typer.Option(help="Write the Parquet manifest here.")] = None,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Say what is in a data set, and what is broken and why."""
    import yaml

    from ssad_ray.config import load_config
    from ssad_ray.datasets.catalog import catalog as read_catalog
    from ssad_ray.datasets.catalog import summary
    from ssad_ray.datasets.manifest import write_manifest
    from ssad_ray.pipelines.console import progress

    resolved = load_config(config, set_ or ())
    with progress() as announce:
        found = read_catalog(data, resolved.data, announce("catalogue"))
    if out is not None:
        write_manifest(found.rows, out)
    typer.echo(yaml.safe_dump(summary(found), sort_keys=False, allow_unicode=True, width=120).rstrip())


@app.command()
def fit(
    out: Out,
    data: Data = None,
    protocol: ProtocolOption = None,
    config: Config = None,
    set_: Set = None,
    seed: Seed = None,
    init_from: InitFrom = None,
    address: Address = None,
) -> None:
    """Learn a detector from the good images of the train stage."""
    from ssad_ray.pipelines.fit import fit as fit_detector

    run = _open(out, config, set_, seed, init_from)
    with _working(run, address, data, protocol) as announce:
        detector = run.detector
        name = f"{detector}-1"
        fit_detector(run, name, detector, announce)
        if not run.champion_path.exists():
            run.promote(name)
    calibration = run.described(name).calibration
    assert calibration is not None  # noqa: S101
    num_failed = len(run.rows("train")) - calibration.num_normals
    if num_failed:
        typer.echo(f"{num_failed} good images failed and had no part in it", err=True)
    typer.echo(f"{run.model_path(name)}\n{calibration.rule}")


@app.command()
def label(
    out: Out,
    model: Model = None,
    roi: Annotated[
        str | None, typer.Option(help="Folder of masks, one per image: leave out regions that lie outside.")
    ] = None,
    set_: SetResource = None,
    address: Address = None,
) -> None:
    """Find and outline the defects of the online stage: a new label version."""
    from ssad_ray.labels.versions import read_lineage
    from ssad_ray.pipelines.interest import keep_inside, masks_in
    from ssad_ray.pipelines.label import label_online

    run = _reopen(out, set_)
    labeller = model or run.champion
    run.refuse_unknown(labeller)
    if roi is not None:
        masks_in(roi)  # refuses what cannot be used before images are labelled
    with _working(run, address) as announce:
        version = label_online(run, labeller, announce)
        if roi is not None:
            version, num_unmasked = keep_inside(run, version, roi)
    counts = read_lineage(str(run.labels_path), version).counts
    typer.echo(f"{run.labels_path / version}\n" + ", ".join(f"{value} {name}" for name, value in counts.items()))
    if roi is not None and num_unmasked:
        typer.echo(f"{num_unmasked} images with regions have no mask; nothing of theirs was left out")


@app.command()
def propagate_masks(
    data: Annotated[str, typer.Argument(help="Folder, manifest (CSV, Parquet) or URI of the images.")],
    drawn: Annotated[str, typer.Option(help="Folder of masks of a few images: their paths, ending in .png.")],
    out: Annotated[str, typer.Option(help="New folder for the masks of all images.")],
    config: Config = None,
    set_: Set = None,
    address: Address = None,
) -> None:
    """Carry masks that were drawn for a few images to all images that show the same."""
    from ssad_ray.config import load_config
    from ssad_ray.pipelines.console import progress
    from ssad_ray.pipelines.propagate_masks import TABLE
    from ssad_ray.pipelines.propagate_masks import propagate_masks as propagate
    from ssad_ray.pipelines.session import session

    resolved = load_config(config, set_ or ())
    with progress() as announce, session(resolved.resources, address):
        num_masks, num_images = propagate(data, drawn, out, resolved, announce)
    typer.echo(f"{out}\n{num_masks} of {num_images} images have a mask; {TABLE} says why the others have none")


@app.command()
def propagate_types(
    out: Out,
    labels: Annotated[str, typer.Option(help="Label version whose regions are to be named.")],
    named: Annotated[str, typer.Option(help="CSV or JSON Lines with region_id and defect_type of a few regions.")],
    name: Annotated[str | None, typer.Option(help="Name of the new label version; LABELS-types by default.")] = None,
    person: Annotated[str, typer.Option(help="Who named them; kept with each of these regions.")] = "person",
    least_share: Annotated[
        float, typer.Option(help="A type with a smaller share among all types stays unknown.", min=0.0, max=1.0)
    ] = 0.5,
    set_: SetResource = None,
    address: Address = None,
) -> None:
    """Spread the defect types of a few regions to those that look alike: a new label version."""
    from ssad_ray.pipelines.propagate_types import propagate_types as propagate

    run, new = _reopen(out, set_), name or f"{labels}-types"
    with _working(run, address) as announce:
        counts = propagate(run, labels, named, new, person, least_share, announce)
    typer.echo(f"{run.labels_path / new}\n{run.types_path(new)}")
    typer.echo(", ".join(f"{count} {each or 'unknown'}" for each, count in counts.most_common()))


@app.command()
def train(
    out: Out,
    labels: Annotated[str, typer.Option(help="Label version to learn from; a model's name is the version it made.")],
    name: Annotated[str, typer.Option(help="Name of the new segmenter.")] = "unet-1",
    set_: SetResource = None,
    address: Address = None,
) -> None:
    """Train a segmenter on a label version, and let it challenge the champion."""
    from ssad_ray.labels.versions import read_lineage
    from ssad_ray.pipelines.gate import run_gate
    from ssad_ray.pipelines.train import train_on_labels

    run = _reopen(out, set_)
    run.model_path(name)  # refuses what cannot be a name before Ray starts
    labeller = read_lineage(str(run.labels_path), labels).lineage.model
    with _working(run, address) as announce:
        train_on_labels(run, name, labels, labeller, announce)
        decision = run_gate(run, name, announce)
    typer.echo(f"{run.model_path(name)}\n{decision.reason}")


@app.command()
def evaluate(
    out: Out,
    model: Model = None,
    set_: SetResource = None,
    address: Address = None,
) -> None:
    """Compare a model with the ground truth of the test stage."""
    from ssad_ray.pipelines.evaluate import evaluate_on_test
    from ssad_ray.pipelines.report_page import why_missing
    from ssad_ray.pipelines.run import read_json

    run = _reopen(out, set_)
    name = model or run.champion
    run.refuse_unknown(name)
    with _working(run, address) as announce:
        evaluate_on_test(run, name, announce)
    figures = read_json(run.evaluation_path(name))
    for group in ("metrics", "counts"):
        for key, value in figures[group].items():
            typer.echo(f"{key:28} {'-' if value is None else value if isinstance(value, int) else f'{value:.4f}'}")
    for reason in why_missing(figures["metrics"], figures["counts"]):
        typer.echo(reason)


@app.command()
def loop(
    out: Out,
    data: Data = None,
    protocol: ProtocolOption = None,
    config: Config = None,
    set_: Set = None,
    seed: Seed = None,
    yardstick: Annotated[
        bool, typer.Option("--yardstick", help="Also train on the true masks of the online stage, to compare.")
    ] = False,
    init_from: InitFrom = None,
    address: Address = None,
) -> None:
    """Turn the whole loop: detector, labels, segmenter, gate, report."""
    _loop(_open(out, config, set_, seed, init_from), data, protocol, address, with_yardstick=yardstick)


def main() -> None:
    """Run the command line; a deliberate error becomes one message and its exit code."""
    try:
        app()
    except InspectionError as error:
        typer.echo(f"ssad: {error.detail}", err=True)
        sys.exit(error.exit_code)


def _loop(
    run: "Run", data: str | None, protocol: Protocol | None, address: str | None, *, with_yardstick: bool
) -> None:
    from ssad_ray.pipelines.loop import run_loop
    from ssad_ray.pipelines.run import read_json

    with _working(run, address, data, protocol) as announce:
        page_path = run_loop(run, announce, with_yardstick=with_yardstick)
    report = read_json(run.report_path)
    roles = [role for role in _ROLES if role in report]
    # Where truth is boxes there are no figures of pixels: then the next ones are shown.
    known = [name for name in _SHOWN if any(report[role][name] is not None for role in roles)]
    shown = (known or _SHOWN)[:_NUM_SHOWN]
    typer.echo(" " * 10 + "".join(f"{name:>14}" for name in shown))
    for role in roles:
        figures = (report[role][name] for name in shown)
        typer.echo(f"{role:10}" + "".join(f"{'-' if each is None else f'{each:.3f}':>14}" for each in figures))
    typer.echo(f"champion: {run.champion}\nlabels: {run.labels_path / run.champion}\nreport: {page_path}")


def _open(
    out: Path, config: Path | None, set_: list[str] | None, seed: int | None, init_from: Path | None = None
) -> "Run":
    from ssad_ray.config import load_config
    from ssad_ray.pipelines.run import config_of, open_run

    overrides = [*(set_ or ()), *([] if seed is None else [f"seed={seed}"])]
    if init_from is not None:
        quoted = json.dumps(str(init_from), ensure_ascii=False)  # a path may look like YAML
        overrides.append(f"detector.init_from={quoted}")
    return open_run(out.absolute(), load_config(config or config_of(out), overrides))


def _reopen(out: Path, set_: list[str] | None) -> "Run":
    from ssad_ray.pipelines.run import config_of

    if config_of(out) is None:
        raise ConfigError(f"{out} is no run; `ssad fit` and `ssad loop` make one")
    return _open(out, None, set_, None)


@contextmanager
def _working(
    run: "Run", address: str | None, data: str | None = None, protocol: Protocol | None = None
) -> Iterator["Announce"]:
    """Give a verb its data, Ray and a place to show progress."""
    from ssad_ray.pipelines.console import progress
    from ssad_ray.pipelines.prepare import prepare
    from ssad_ray.pipelines.session import session

    with progress() as announce, run.locked():
        num_unusable = prepare(run, data, protocol.value if protocol else None, announce)
        if num_unusable:
            typer.echo(
                f"{num_unusable} images cannot be used and are left out; `ssad catalog {data}` says why", err=True
            )
        resources = run.config.resources
        with session(resources, address, dashboard=resources.train_workers > 0):
            yield announce
