"""PNG, JPEG and DICOM files decode to the grey values their formats define."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_windowing
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid

from medfed.datasets.dicom import read_dicom
from medfed.datasets.images import read_grey

STORED = np.arange(16, dtype=np.uint16).reshape(4, 4) * 273  # 0 … 4095: the whole range of 12 bits


def write(path: Path, stored: np.ndarray = STORED, **tags: object) -> Path:
    """Write a minimal grey DICOM file of 12-bit words; ``tags`` override."""
    file = pydicom.Dataset()
    file.SOPClassUID, file.SOPInstanceUID = ComputedRadiographyImageStorage, generate_uid(entropy_srcs=[path.name])
    file.Rows, file.Columns = stored.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.add_new("PixelData", "OW", stored.tobytes())
    for name, value in tags.items():
        setattr(file, name, value)
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.save_as(path, enforce_file_format=True)
    return path


def test_eight_and_sixteen_bits_agree(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "8.png")
    Image.fromarray(values.astype(np.uint16) * 257).save(tmp_path / "16.png")  # 255 · 257 = 65535
    np.testing.assert_array_equal(read_grey(tmp_path / "8.png"), values / np.float32(255))
    np.testing.assert_allclose(read_grey(tmp_path / "16.png"), read_grey(tmp_path / "8.png"), atol=1e-7)


def test_colour_becomes_luma(tmp_path: Path) -> None:
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B; pure red is 0.299 · 255 = 76.2 → 76
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "red.png")
    np.testing.assert_allclose(read_grey(tmp_path / "red.png"), 76 / 255, atol=1e-6)


def test_jpeg_is_close_to_its_source(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.jpg", quality=95)
    np.testing.assert_allclose(read_grey(tmp_path / "ramp.jpg"), ramp / 255, atol=0.02)


def test_without_a_window_the_stored_bits_are_the_range(tmp_path: Path) -> None:
    np.testing.assert_allclose(read_dicom(write(tmp_path / "a.dcm")), STORED / 4095, atol=1e-6)
    half = read_dicom(write(tmp_path / "b.dcm", (STORED // 2)))
    assert half.max() == pytest.approx(2047 / 4095)  # not stretched to 1


def test_signed_values_and_rescaling_keep_the_range(tmp_path: Path) -> None:
    signed = (STORED.astype(np.int16) - 2048).astype(np.int16)
    expected = STORED / 4095
    np.testing.assert_allclose(
        read_dicom(write(tmp_path / "a.dcm", signed, PixelRepresentation=1)), expected, atol=1e-6
    )
    rescaled = write(tmp_path / "b.dcm", RescaleSlope=2, RescaleIntercept=-1000)
    np.testing.assert_allclose(read_dicom(rescaled), expected, atol=1e-6)
    # a negative slope turns stored order around: the lowest rescaled value is the darkest
    flipped = write(tmp_path / "c.dcm", RescaleSlope=-1, RescaleIntercept=4095)
    np.testing.assert_allclose(read_dicom(flipped), 1 - expected, atol=1e-6)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 1600, "WindowWidth": 2400}])
def test_monochrome1_is_monochrome2_inverted(tmp_path: Path, window: dict[str, object]) -> None:
    plain = read_dicom(write(tmp_path / "a.dcm", **window))
    inverted = read_dicom(write(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1", **window))
    np.testing.assert_allclose(inverted, 1 - plain, atol=1e-6)


def test_a_window_maps_its_ends_to_black_and_white(tmp_path: Path) -> None:
    # PS3.3 C.11.2.1.2: black up to c − 0.5 − (w − 1)/2 = 1000, white above 3000, for c = 2000.5, w = 2001
    stored = np.array([[0, 1000, 2000, 3000, 4095]], np.uint16)
    grey = read_dicom(write(tmp_path / "a.dcm", stored, WindowCenter="2000.5", WindowWidth="2001"))
    np.testing.assert_allclose(grey, [[0, 0, 0.5, 1, 1]], atol=1e-6)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_pydicom(tmp_path: Path, function: str) -> None:
    path = write(tmp_path / "a.dcm", WindowCenter=[1800, 5], WindowWidth=[2000, 9], VOILUTFunction=function)
    dataset = pydicom.dcmread(path)
    expected = apply_windowing(dataset.pixel_array, dataset, index=0) / 4095  # its output range is the stored bits'
    np.testing.assert_allclose(read_dicom(path), expected, atol=1e-6)


def test_a_voi_table_goes_before_a_window(tmp_path: Path) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [3, 0, 8], [0, 51, 255]
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    stored = np.array([[0, 1, 2, 9]], np.uint16)  # entries past the table map to its last
    path = write(tmp_path / "a.dcm", stored, VOILUTSequence=[table], WindowCenter=1, WindowWidth=2)
    np.testing.assert_allclose(read_dicom(path), [[0, 0.2, 1, 1]], atol=1e-6)


def test_jpeg_baseline_is_decoded(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.jpg", quality=95)
    path = write(tmp_path / "a.dcm", ramp, BitsAllocated=8, BitsStored=8, HighBit=7)
    file = pydicom.dcmread(path)
    file.PixelData = encapsulate([(tmp_path / "ramp.jpg").read_bytes()])
    file["PixelData"].VR = "OB"
    file.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    file.save_as(path)
    np.testing.assert_array_equal(read_dicom(path), read_grey(tmp_path / "ramp.jpg"))
