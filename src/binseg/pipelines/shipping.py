"""From the best weights to what ships: threshold, scores, bundle, report."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from binseg.config import Recipe
from binseg.data.cache import PixelCache
from binseg.data.dataset import Dataset
from binseg.evaluation.learning_quality import gather_lessons, learn_quality
from binseg.evaluation.origin import Origin
from binseg.evaluation.report_files import write_report
from binseg.evaluation.scoring import score_dataset
from binseg.evaluation.tuning import Tuned, tell_calibration, tune_on_validation
from binseg.inference import ModelPredictor, PredictOptions, load, verify_reference
from binseg.inference.runtimes.torch import TorchBackend
from binseg.models import resolve_options
from binseg.packaging import Architecture, Card, DataFacts, Reference, write_bundle
from binseg.postprocess import NOTHING
from binseg.progress import Progress
from binseg.training.devices import resolve_device
from binseg.training.run_folder import RunFolder, environment
from binseg.types import Report

NUM_REFERENCE = 2  # validation inputs that a bundle carries as its own test
CHOSEN_ON = (  # The sentence that goes with the scores of validation
    "These images chose epoch, threshold and post-processing: new images will fare somewhat worse."
)


def ship(
    recipe: Recipe,
    run: RunFolder,
    dataset: Dataset,
    model: nn.Module,
    weights: Mapping[str, np.ndarray],
    *,
    val_pixels: PixelCache,
    progress: Progress,
) -> Report:
    """Choose the threshold, score the validation split, and write the bundle of the weights."""
    val = replace(dataset.only("val"), notes=(CHOSEN_ON,))
    tuned = tune_on_validation(recipe, in_memory(recipe, model), val, progress=progress)
    predictor = in_memory(recipe, model, tuned)
    title = f"{recipe.model.name}, validation"
    report = score_dataset(predictor, val, split="val", title=title, progress=progress)
    reference = _reference(predictor.with_options(PredictOptions(tta="none")), val_pixels)
    tell_calibration(tuned, report, progress)
    lessons = gather_lessons(predictor, dataset, progress=progress)
    known = learn_quality(predictor, dataset, lessons, progress=progress)
    bundle = write_bundle(
        run.bundle_path,
        card=_card(recipe, dataset, tuned, report).model_copy(update={"knowledge": known}),
        weights=weights,
        reference=reference,
    )
    shipped = load(run.bundle_path, device=resolve_device(recipe.train.device).type)
    assert shipped.bundle is not None
    check = verify_reference(shipped, shipped.bundle)
    assert check.passed, f"the bundle predicts otherwise than its model: {check}"
    report = replace(report, bundle_id=bundle.card.id)
    origin = Origin(run=run, card=bundle.card)
    write_report(run.path / "val", report, dataset=val, predictor=predictor, origin=origin)
    return report


def in_memory(recipe: Recipe, model: nn.Module, tuned: Tuned | None = None) -> ModelPredictor:
    """Wrap the model in memory as a predictor that works just like the one of its bundle."""
    device = resolve_device(recipe.train.device)
    return ModelPredictor(
        backend=TorchBackend(model.to(device), device=str(device), precision="fp32"),
        preprocessing=recipe.preprocessing(),
        threshold=tuned.threshold.value if tuned else 0.5,
        bundle_id="in training",
        temperature=tuned.temperature if tuned else 1.0,
        postprocessing=tuned.postprocessing if tuned else NOTHING,
        tta=tuned.tta if tuned else "none",
    )


def _reference(predictor: ModelPredictor, pixels: PixelCache) -> Reference:
    """Take the validation inputs with the most foreground: an empty mask would test little."""
    shares = [float((target_HW == 1).mean()) for target_HW in pixels.targets_NHW]
    rows = np.argsort(shares, kind="stable")[::-1][:NUM_REFERENCE]
    input_NHWC = np.ascontiguousarray(pixels.inputs_NHWC[np.sort(rows)])
    probability_NHW = predictor.probability_of_inputs(input_NHWC)
    return Reference(input_NHWC=input_NHWC, probability_NHW=probability_NHW)


def _card(recipe: Recipe, dataset: Dataset, tuned: Tuned, report: Report) -> Card:
    sizes = Counter(record.split for record in dataset.records)
    facts, net = environment(), recipe.model
    packages = facts["packages"]
    assert isinstance(packages, Mapping)
    names = ("binseg", "torch", "lightning-fabric", "numpy")
    return Card(
        name=net.name,
        architecture=Architecture(
            decoder=net.decoder,
            encoder=net.encoder,
            options=resolve_options(net.decoder, net.encoder, net.options),
            in_channels=recipe.input.channels,
            out_channels=net.out_channels,
        ),
        preprocessing=recipe.preprocessing(),
        temperature=tuned.temperature,
        threshold=tuned.threshold,
        tta=tuned.tta,
        postprocess=tuned.postprocessing,
        border=dataset.rule.border or "none",
        data=DataFacts(
            kind=dataset.kind,
            fingerprint=dataset.fingerprint(),
            num_train=sizes["train"],
            num_val=sizes["val"],
            num_test=sizes["test"],
            note=f"continues {Path(net.start_from).name}" if net.start_from else "",
        ),
        scores={f"val, {size} size": dict(scores) for size, scores in report.mean.items()},
        versions={name: str({**facts, **packages}[name]) for name in ("python", *names)},
        recipe=recipe.model_dump(mode="json"),
    )
