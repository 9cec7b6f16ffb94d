"""A picture in, a mask out, without files: for pipes and programs."""

from binseg.imageio import decode_image
from binseg.predictor import Predictor
from binseg.workflows.outputs import Answer, encode_output

__all__ = ["predict_bytes"]


def predict_bytes(
    predictor: Predictor,
    data: bytes,
    *,
    output: str = "mask",
    threshold: float | None = None,
    tolerance: float = 0.0,
    name: str = "the picture on stdin",
) -> bytes:
    """Predict one picture that is in memory.

    Args:
        predictor: the model.
        data: a picture file's bytes.
        output: mask, probability, overlay, cutout or json.
        threshold: instead of the model's own.
        tolerance: by how many pixels outlines may be simplified.
        name: what errors call the picture.

    Raises:
        PictureError: bytes that are no picture.
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
