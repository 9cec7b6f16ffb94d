"""The whole line on images made on the spot: train, score, and set Otsu's method beside it."""

from dataclasses import dataclass
from pathlib import Path

from binseg.config import Recipe, load_recipe
from binseg.data.otsu import otsu_dice
from binseg.evaluation.evaluation_data import Known, choose_data, data_config
from binseg.evaluation.scoring import Evaluation
from binseg.inference import PredictOptions, load
from binseg.inference.engine import predict_files
from binseg.inference.pretrained import default_bundle_path, photo_path
from binseg.pipelines.evaluate_model import evaluate_split
from binseg.pipelines.train_model import train
from binseg.progress import SILENT, Progress
from binseg.training.run_folder import RunFolder

__all__ = ["DemoResult", "demo"]


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo made."""

    folder: Path
    evaluation: Evaluation
    """On the test split."""
    otsu_dice: float
    """Mean Dice of Otsu's threshold on the same images, told each time which side to take."""
    gallery_path: Path
    mask_path: Path
    photo_path: Path
    """A photo with the mask that the built-in model lays over it."""
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
            "test": self.evaluation.as_dict(),
        }


def demo(
    out: str | Path, *, recipe: Recipe | None = None, progress: Progress = SILENT
) -> DemoResult:
    """Train a small model on synthetic images, score it, predict one; then a photo of a cat.

    Args:
        out: folder for everything; absent or empty.
        recipe: instead of the recipe `demo`.
        progress: told how far it is.
    """
    trained = train(recipe or load_recipe("demo"), out=out, progress=progress)
    run = RunFolder(path=trained.folder)
    test_folder = run.path / "test"
    evaluation = evaluate_split(run.path, split="test", out=test_folder, progress=progress)
    predictor = load(run.path)
    known = Known.of(predictor)
    test = choose_data(data_config(known), split="test", known=known)
    predicted = predict_files(
        predictor,
        [test.records[0].image_path],
        out=run.path / "predicted",
        options=PredictOptions(outputs=("overlay",)),
    )
    photo = predict_files(
        load(default_bundle_path()),
        [photo_path()],
        out=run.path / "photo",
        options=PredictOptions(outputs=("overlay",), largest_only=True),
    )
    return DemoResult(
        folder=run.path,
        evaluation=evaluation,
        otsu_dice=otsu_dice(test.records, test.rule),
        gallery_path=test_folder / "gallery.png",
        mask_path=predicted.written[0].mask,
        photo_path=photo.written[0].others[0],
        seconds=trained.seconds,
    )
