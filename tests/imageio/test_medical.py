"""NIfTI and DICOM slices, beside what nibabel and pydicom read."""

from pathlib import Path

import numpy as np
import pytest

from binseg.config import DataConfig
from binseg.data import open_dataset
from binseg.data.samples import read_sample
from binseg.errors import DataError, ImageError
from binseg.imageio import probe, read_image, read_labels

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")


def volume(path: Path, values_WHD: np.ndarray, *, slope: float | None = None) -> Path:
    image = nibabel.Nifti1Image(values_WHD, np.eye(4))
    if slope is not None:
        image.header.set_slope_inter(slope, 3.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "f4", ">i2"])
def test_slices_are_those_of_nibabel(tmp_path: Path, suffix: str, dtype: str) -> None:
    """Rows run along the second axis, columns along the first, pages along the third."""
    random = np.random.default_rng(0)
    values_WHD = random.integers(0, 200, (7, 5, 3)).astype(dtype)
    path = volume(tmp_path / f"a{suffix}", values_WHD)
    info = probe(path)
    assert (info.width, info.height, info.num_pages, info.format) == (7, 5, 3, "NIFTI")
    referee_WHD = nibabel.load(path).get_fdata()
    for page in range(3):
        np.testing.assert_array_equal(
            read_image(path, page=page)[:, :, 0], referee_WHD[:, :, page].T
        )
        np.testing.assert_array_equal(read_labels(path, page=page), values_WHD[:, :, page].T)
    with pytest.raises(ImageError, match="has 3 slices"):
        read_image(path)


def test_measured_values_are_scaled(tmp_path: Path) -> None:
    """Slope and intercept belong to the image."""
    values_WHD = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    path = volume(tmp_path / "a.nii", values_WHD, slope=0.5)
    referee_WHD = nibabel.load(path).get_fdata()
    np.testing.assert_allclose(read_image(path, page=1)[:, :, 0], referee_WHD[:, :, 1].T)


def test_volumes_are_a_dataset(tmp_path: Path) -> None:
    """Each slice is an image with its mask, as the pages of TIFF stacks are."""
    random = np.random.default_rng(0)
    for case in range(3):
        mask_WHD = random.random((24, 20, 6)) > 0.7
        image_WHD = (mask_WHD * 90 + random.integers(0, 60, mask_WHD.shape)).astype(np.int16)
        volume(tmp_path / "images" / f"case{case}.nii.gz", image_WHD)
        volume(tmp_path / "masks" / f"case{case}.nii.gz", mask_WHD.astype(np.uint8))
    dataset = open_dataset(DataConfig(path=str(tmp_path)))
    assert len(dataset.records) == 18
    sample = read_sample(dataset.records[-1], dataset.rule)
    assert sample.mask_HW is not None
    np.testing.assert_array_equal(sample.mask_HW, mask_WHD[:, :, 5].T)


def test_nnunets_volumes_are_a_dataset(tmp_path: Path) -> None:
    """Cases are volumes, channels are files; each slice has its place in both."""
    random = np.random.default_rng(0)
    for case in ("a_1", "b_2"):
        mask_WHD = (random.random((24, 20, 4)) > 0.7).astype(np.uint8)
        for channel in range(2):
            image_WHD = (mask_WHD * 90 + channel).astype(np.int16)
            volume(tmp_path / "imagesTr" / f"{case}_{channel:04d}.nii.gz", image_WHD)
        volume(tmp_path / "labelsTr" / f"{case}.nii.gz", mask_WHD)
    dataset = open_dataset(DataConfig(path=str(tmp_path)))
    assert (dataset.kind, len(dataset.records)) == ("nnunet", 8)
    sample = read_sample(dataset.records[-1], dataset.rule)
    assert sample.image_HWC.shape == (20, 24, 2)
    np.testing.assert_array_equal(sample.mask_HW, mask_WHD[:, :, 3].T == 1)


def dicom(path: Path, frames_NHW: np.ndarray, *, kind: str = "MONOCHROME2") -> Path:
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file = pydicom.dataset.Dataset()
    file.file_meta = meta
    file.SOPClassUID, file.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2", "1.2.3"
    num, file.Rows, file.Columns = frames_NHW.shape
    file.NumberOfFrames, file.SamplesPerPixel, file.PhotometricInterpretation = num, 1, kind
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation = 15, 1
    file.RescaleSlope, file.RescaleIntercept = 2, -1024
    file.PixelData = frames_NHW.astype("<i2").tobytes()
    file.save_as(path, enforce_file_format=True)
    return path


def test_frames_are_those_of_pydicom(tmp_path: Path) -> None:
    """Rescaled to what was measured; masks as stored; white is 255 also where it is stored as 0."""
    frames_NHW = np.random.default_rng(0).integers(0, 900, (2, 6, 9))
    path = dicom(tmp_path / "a.dcm", frames_NHW)
    assert (probe(path).num_pages, probe(path).format) == (2, "DICOM")
    referee_NHW = pydicom.dcmread(path).pixel_array
    for page in range(2):
        measured_HW = referee_NHW[page] * 2.0 - 1024
        np.testing.assert_array_equal(read_image(path, page=page)[:, :, 0], measured_HW)
        np.testing.assert_array_equal(read_labels(path, page=page), referee_NHW[page])
    turned = dicom(tmp_path / "b.dcm", frames_NHW[:1], kind="MONOCHROME1")
    assert read_labels(turned).argmax() == frames_NHW[0].argmin()


@pytest.mark.parametrize(
    ("head", "told"),
    [(b"ZISRAWFILE", "Zeiss CZI file.*OME-TIFF"), (b"8BPS", "Photoshop"), (b"NRRD0004", "nii")],
)
def test_a_known_format_names_the_way_out(tmp_path: Path, head: bytes, told: str) -> None:
    """What isn't read is named, with the export that is."""
    path = tmp_path / "a.png"
    path.write_bytes(head + bytes(400))
    with pytest.raises(ImageError, match=told):
        probe(path)


def test_volumes_and_masks_of_other_axes_are_refused(tmp_path: Path) -> None:
    """A mask saved in another orientation would lie mirrored; without a word in it, it is taken."""
    labels_WHD = np.zeros((24, 20, 6), np.uint8)
    labels_WHD[3:9, 4:15] = 1
    volume(tmp_path / "images" / "a.nii", labels_WHD * 90)
    image = nibabel.Nifti1Image(labels_WHD * 90, np.diag([-1.0, -1, 2, 1]))
    nibabel.save(image, tmp_path / "images" / "a.nii")
    volume(tmp_path / "masks" / "a.nii", labels_WHD)
    data = open_dataset(DataConfig(path=str(tmp_path)))
    np.testing.assert_array_equal(
        read_sample(data.records[0], data.rule).mask_HW, labels_WHD[:, :, 0].T > 0
    )
    mask = nibabel.Nifti1Image(labels_WHD, np.diag([-1.0, 1, 2, 1]))
    nibabel.save(mask, tmp_path / "masks" / "a.nii")
    with pytest.raises(DataError, match=r"other ways: a\.nii \(LPS\), a\.nii \(LAS\)"):
        open_dataset(DataConfig(path=str(tmp_path)))


def test_masks_that_are_scaled_to_whole_numbers_are_those(tmp_path: Path) -> None:
    """Programs that save fractions pack 0 and 1 as 0 and 255 with a slope of 1 / 255."""
    labels_WHD = np.zeros((5, 4, 2), np.uint8)
    labels_WHD[1:3] = 255
    image = nibabel.Nifti1Image(labels_WHD, np.eye(4))
    path = tmp_path / "a.nii"
    nibabel.save(image, path)
    header = image.header.copy()
    header.set_slope_inter(1 / 255, 0)
    header["vox_offset"] = 352
    path.write_bytes(header.binaryblock + bytes(4) + labels_WHD.tobytes(order="F"))
    referee_WHD = np.rint(nibabel.load(path).get_fdata())
    assert set(np.unique(referee_WHD)) == {0, 1}
    np.testing.assert_array_equal(read_labels(path, page=0), referee_WHD[:, :, 0].T)


def test_white_is_turned_by_the_bits_that_are_stored(tmp_path: Path) -> None:
    """Alike in all slices of a series, whatever a slice holds; an empty mask stays empty."""
    bright_NHW, dark_NHW = np.full((2, 1, 6, 9), 300)
    dark_NHW[0, 0, 0] = 7
    for number, frames_NHW in enumerate((bright_NHW, dark_NHW)):
        path = dicom(tmp_path / f"{number}.dcm", frames_NHW, kind="MONOCHROME1")
        np.testing.assert_array_equal(read_labels(path), -1 - frames_NHW[0])
    file = pydicom.dcmread(path)
    file.PixelRepresentation, file.BitsStored, file.HighBit = 0, 12, 11
    file.save_as(path)
    np.testing.assert_array_equal(read_labels(path), 4095 - dark_NHW[0])


@pytest.mark.parametrize("kind", ["complex", "colours", "second", "second packed"])
def test_volumes_that_are_not_read_are_one_line(tmp_path: Path, kind: str) -> None:
    """Complex numbers would lose a part; NIfTI-2 is named with the way out."""
    values_WHD = np.zeros((5, 4, 2), np.complex64 if kind == "complex" else np.uint8)
    if kind == "colours":
        values_WHD = np.zeros((5, 4, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    path = tmp_path / ("a.nii.gz" if "packed" in kind else "a.nii")
    image = nibabel.Nifti2Image if "second" in kind else nibabel.Nifti1Image
    nibabel.save(image(values_WHD, np.eye(4)), path)
    told = "save it as NIfTI-1" if "second" in kind else "save one number for each voxel"
    with pytest.raises(ImageError, match=told):
        read_image(path, page=0)
