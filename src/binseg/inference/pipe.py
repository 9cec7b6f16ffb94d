"""An image in, a mask out, without files: for pipes and programs."""

from binseg.imageio import decode_image
from binseg.inference import Predictor
from binseg.inference.outputs import Answer, encode_output

__all__ = ["predict_bytes"]


def predict_bytes(
    predictor: Predictor,
    data: bytes,
    *,
    output: str = "mask",
    threshold: float | None = None,
    tolerance: float = 0.0,
    name: str = "the image on stdin",
) -> bytes:
    """Predict one image that is in memory.

    Args:
        predictor: the model.
        data: an image file's bytes.
        output: mask, probability, overlay, cutout or json.
        threshold: instead of the model's own.
        tolerance: by how many pixels outlines may be simplified.
        name: what errors call the image.

    Raises:
        ImageError: bytes that are no image.
        UsageError: another output.
    """
    if threshold is not None:
        predictor = predictor.with_threshold(threshold)
    image_HWC = decode_image(data, name=name)
    answer = Answer(
        prediction=predictor.predict(image_HWC),
        image_HWC=image_HWC,
        name=name,
        tolerance=tolerance,
    )
    return encode_output(output, answer)[0]
