"""Encoder weights from elsewhere: all or an error, and never unpickled."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from binseg.errors import DataError, UsageError
from binseg.models import create_model, load_encoder_weights
from binseg.models.skeleton import EncoderDecoder
from binseg.progress import Silent


class Listener(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def small(encoder: str = "resnet34", *, in_channels: int = 3, **options: Any) -> EncoderDecoder:
    model = create_model(encoder=encoder, in_channels=in_channels, **({"width": 4} | options))
    assert isinstance(model, EncoderDecoder)
    return model


def published(name: str = "resnet34") -> dict[str, Tensor]:
    """What a publisher gives out: the encoder by torchvision's names, and a classifier."""
    torch.manual_seed(3)
    state = {key: torch.rand_like(value.float()) for key, value in _state(name).items()}
    return state | {"fc.weight": torch.zeros(1000, 32), "fc.bias": torch.zeros(1000)}


def _state(name: str) -> dict[str, Tensor]:
    return small(name).encoder.state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_published_file_loads(tmp_path: Path, suffix: str) -> None:
    """Every encoder tensor becomes the file's; the classifier is left out, and that is said."""
    path, state, listener = tmp_path / f"resnet34{suffix}", published(), Listener()
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    model = small()
    assert load_encoder_weights(model, str(path), progress=listener) == 216
    loaded = model.encoder.state_dict()
    assert all(torch.equal(loaded[key], state[key].to(loaded[key].dtype)) for key in loaded)
    said = " ".join(listener.lines)
    assert "left out" in said
    assert "fc.weight" in said


def test_an_old_file_without_counters_loads(tmp_path: Path) -> None:
    """Files from before batch norm counted its batches are complete."""
    state = {k: v for k, v in published().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_encoder_weights(small(), str(tmp_path / "old.pth")) == 180


def test_old_densenet_names_load(tmp_path: Path) -> None:
    """`denselayer1.norm.1.weight`, as the published DenseNet file has it, is norm1's weight."""
    state = {
        key.replace(".norm1.", ".norm.1.")
        .replace(".norm2.", ".norm.2.")
        .replace(".conv1.", ".conv.1.")
        .replace(".conv2.", ".conv.2."): value
        for key, value in _state("densenet121").items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    save_file(state, tmp_path / "dense.safetensors")
    model = small("densenet121")
    count = load_encoder_weights(model, str(tmp_path / "dense.safetensors"))
    assert count == len(state)


def test_the_encoder_of_another_binseg_model_loads(tmp_path: Path) -> None:
    """A bundle's weights serve as a start: its encoder is taken, its decoder left out."""
    other, model = small(), small()
    save_file(other.state_dict(), tmp_path / "weights.safetensors")
    load_encoder_weights(model, str(tmp_path / "weights.safetensors"))
    assert torch.equal(
        model.encoder.get_parameter("conv1.weight"), other.encoder.get_parameter("conv1.weight")
    )
    assert not torch.equal(model.head.weight, other.head.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("in_channels", [1, 3, 4, 6])
def test_grey_images_are_answered_alike(tmp_path: Path, in_channels: int) -> None:
    """One image repeated in all channels gives the first convolution's answer for three."""
    state, listener = published(), Listener()
    # Equal weights for red, green and blue make the repetition exact for four channels, too.
    state["conv1.weight"] = state["conv1.weight"][:, :1].repeat(1, 3, 1, 1)
    torch.save(state, tmp_path / "w.pth")
    model = small(in_channels=in_channels)
    load_encoder_weights(model, str(tmp_path / "w.pth"), progress=listener)
    grey = torch.rand(1, 1, 16, 16)
    expected = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), state["conv1.weight"], None, 2, 3)
    conv1 = model.encoder.get_submodule("conv1")
    answer = conv1(grey.expand(-1, in_channels, -1, -1))
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)
    assert any("conv1.weight" in line for line in listener.lines) == (in_channels != 3)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """What is missing, unknown or of another shape is named, and the model stays as it was."""
    model, path = small(), tmp_path / "w.pth"
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = published()
    for wrong, message in (
        ({k: v for k, v in state.items() if "layer4" not in k}, "lacks layer4.0.conv1.weight"),
        (state | {"layer5.weight": torch.zeros(1)}, "has layer5.weight, which"),
        (state | {"bn1.weight": torch.zeros(64)}, "bn1.weight is 64, the model's encoder has 4"),
    ):
        torch.save(wrong, path)
        with pytest.raises(DataError, match=message):
            load_encoder_weights(model, str(path))
    torch.save(published(), path)
    with pytest.raises(DataError, match="published ones have none; take encoder_bias: false"):
        load_encoder_weights(small(encoder_bias=True), str(path))
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stranger's file can't execute anything."""
    torch.save({"conv1.weight": _Evil()}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match="not a readable state dict"):
        load_encoder_weights(small(), str(tmp_path / "evil.pth"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut"])
def test_unreadable_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """Empty, foreign and cut files are one line with the file's name."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: not a readable"):
        load_encoder_weights(small(), str(tmp_path / name))


def test_lists_are_no_state_dict(tmp_path: Path) -> None:
    """A readable file that holds no tensors by name is refused."""
    torch.save([torch.zeros(1)], tmp_path / "w.pth")
    with pytest.raises(DataError, match="no plain state dict"):
        load_encoder_weights(small(), str(tmp_path / "w.pth"))


def test_missing_file_and_bad_addresses(tmp_path: Path) -> None:
    """A source is a file that is there, or an https address with its hash."""
    with pytest.raises(DataError, match="no such file"):
        load_encoder_weights(small(), str(tmp_path / "absent.pth"))
    with pytest.raises(UsageError, match="not http://"):
        load_encoder_weights(small(), f"http://example.org/w.pth#sha256={'0' * 64}")
    with pytest.raises(UsageError, match="need its file's hash"):
        load_encoder_weights(small(), "https://example.org/w.pth")


def test_an_address_is_fetched_once_into_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The download goes to the cache, under a name that bears the hash."""
    asked: list[tuple[str, Path, str]] = []

    def fake(url: str, path: Path, *, sha256: str, progress: object) -> Path:
        asked.append((url, path, sha256))
        path.parent.mkdir()
        torch.save(published(), path)
        return path

    monkeypatch.setenv("BINSEG_CACHE", str(tmp_path))
    monkeypatch.setattr("binseg.models.create.download", fake)
    url = "https://example.org/models/resnet34.pth?x=1"
    assert load_encoder_weights(small(), f"{url}#sha256={'ab' * 32}") == 216
    assert asked == [(url, tmp_path / "weights" / "abababababab-resnet34.pth", "ab" * 32)]


def test_networks_without_an_encoder_are_refused(tmp_path: Path) -> None:
    """Weights are never dropped in silence because there is no place for them."""
    with pytest.raises(UsageError, match="Conv2d has no encoder"):
        load_encoder_weights(nn.Conv2d(1, 1, 1), str(tmp_path / "w.pth"))
