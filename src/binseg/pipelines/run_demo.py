"""The whole path on images made on the spot: train, score, and set Otsu's method beside it."""

from dataclasses import dataclass, replace
from pathlib import Path

from binseg.config import Recipe, load_recipe
from binseg.data.sources.synthetic import otsu_dice
from binseg.evaluation.origin import Origin, choose_data, data_config
from binseg.inference import PredictOptions, load
from binseg.inference.engine import predict_files
from binseg.inference.pretrained import default_bundle_path, photo_path
from binseg.metrics import report_as_dict
from binseg.pipelines.evaluate_model import evaluate
from binseg.pipelines.train_model import train
from binseg.progress import SILENT, Progress
from binseg.types import Report


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The files and figures that the demo made."""

    folder: Path
    report: Report  # on the test split
    otsu_dice: float  # Mean Dice of Otsu's threshold, told which side to take
    gallery_path: Path
    mask_path: Path
    photo_path: Path  # a photo with the mask that the built-in model lays over it
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """The facts as plain data."""
        return {
            "folder": str(self.folder),
            "seconds": round(self.seconds, 1),
            "otsu_dice": self.otsu_dice,
            "gallery": str(self.gallery_path),
            "mask": str(self.mask_path),
            "photo": str(self.photo_path),
            "test": report_as_dict(self.report),
        }


def demo(
    out: str | Path, *, recipe: Recipe | None = None, progress: Progress = SILENT
) -> DemoResult:
    """Train a small model on synthetic images, score it, predict one; then a photo of a cat."""
    trained = train(recipe or load_recipe("demo"), out=out, progress=progress)
    folder, options = trained.folder, PredictOptions(outputs=("overlay",))
    report = evaluate(folder, split="test", out=folder / "test", progress=progress)
    predictor = load(folder)
    origin = Origin.of(predictor)
    test = choose_data(data_config(origin), split="test", origin=origin)
    image = test.records[0].image_path
    predicted = predict_files(predictor, [image], out=folder / "predicted", options=options)
    photo = predict_files(
        load(default_bundle_path()),
        [photo_path()],
        out=folder / "photo",
        options=replace(options, largest_only=True),
    )
    return DemoResult(
        folder=folder,
        report=report,
        otsu_dice=otsu_dice(test.records, test.rule),
        gallery_path=folder / "test" / "gallery.png",
        mask_path=predicted.written[0].mask,
        photo_path=photo.written[0].others[0],
        seconds=trained.seconds,
    )
