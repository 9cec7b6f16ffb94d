"""How good a model is on one split: scores per image and pooled, tables and pictures."""

import re
from pathlib import Path

from binseg.config import DataConfig
from binseg.predictor import Predictor, load
from binseg.progress import SILENT, Progress
from binseg.structures import Report
from binseg.workflows.evaluation_data import Known, check_split_name, choose_data, data_config
from binseg.workflows.run_folder import RunFolder
from binseg.workflows.scoring import Evaluation, score_dataset, write_report

__all__ = ["evaluate", "evaluate_split", "report_folder"]


def evaluate(
    model: str | Path | Predictor,
    *,
    data: DataConfig | str | Path | None = None,
    split: str = "test",
    out: str | Path | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Report:
    """Score a model on one split of a data set.

    Pictures that a run's split.csv knows keep the split that they had in training, so that none
    that trained the model is scored as `test`.

    Args:
        model: the folder of a run, a bundle, or a predictor.
        data: where the pictures are; a run knows its own. A path's masks are read as in training.
        split: train, val, test or all.
        out: folder for report.json, per_image.csv, gallery.png and histogram.png; None writes
            nothing.
        device: auto, cpu or cuda; for a model that is loaded here.
        progress: told how far it is.

    Raises:
        UsageError: an unknown split, or no data.
        BundleError: a model that can't be loaded.
        DataError: no picture to score.
    """
    return evaluate_split(
        model, data=data, split=split, out=out, device=device, progress=progress
    ).report


def evaluate_split(
    model: str | Path | Predictor,
    *,
    data: DataConfig | str | Path | None = None,
    split: str = "test",
    out: str | Path | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Evaluation:
    """Do what `evaluate` does, and say too which images belong together."""
    check_split_name(split)
    predictor = model if isinstance(model, Predictor) else load(model, device=device)
    known = Known.of(predictor)
    config = data if isinstance(data, DataConfig) else data_config(known, data)
    dataset = choose_data(config, split=split, known=known, progress=progress)
    name = predictor.card.name if predictor.card is not None else "model"
    evaluation = score_dataset(
        predictor,
        dataset,
        split=split,
        title=f"{name}, {split} of {config.path}",
        progress=progress,
    )
    if out is not None:
        write_report(Path(out), evaluation, dataset=dataset, predictor=predictor)
    return evaluation


def report_folder(model: str | Path, *, split: str, data: str | Path | None = None) -> Path:
    """Say where a report goes that nobody named a folder for: into the run, by split and data."""
    run = RunFolder.find(model)
    home = run.path if run is not None else Path("evaluation")
    if data is None:
        return home / split
    # A path's last part names the data; `synthetic:num=60` holds what file names shouldn't.
    return home / f"{split}-{re.sub(r'[^A-Za-z0-9._-]+', '-', Path(data).resolve().stem)}"
