"""Recipes: read whole, refused whole, written back unchanged."""

from pathlib import Path

import pytest

from binseg.config import dump_recipe, load_recipe, recipe_names
from binseg.errors import UsageError


@pytest.mark.parametrize("name", recipe_names())
def test_each_shipped_recipe_survives_being_written_and_read(name: str, tmp_path: Path) -> None:
    """A dumped recipe reads back equal, and every shipped one says what it is."""
    recipe = load_recipe(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe), "utf-8")
    assert load_recipe(path) == recipe
    assert recipe.about.summary
    assert recipe.about.source
    assert recipe.about.expected


def test_all_problems_come_in_one_line_with_the_nearest_name() -> None:
    """Four mistakes give one message of one line that names all four and mends the typos."""
    with pytest.raises(UsageError) as caught:
        load_recipe(
            overrides=[
                "train.epoch=3",
                "input.resize=strech",
                "train.batch_size=0",
                "optimiser.lr=1",
            ]
        )
    message = str(caught.value)
    assert "\n" not in message
    assert "did you mean epochs?" in message
    assert "did you mean stretch?" in message
    assert "train.batch_size" in message
    assert "did you mean optimizer?" in message
    with pytest.raises(UsageError, match=r"; and 42 more$") as caught:
        load_recipe(sections={"input": {"mean": list("x" * 50)}})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("- a list", "mapping"),
        ("train: [1, 2]", "train"),
        ("train: {epochs: 3", "not valid YAML"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("train: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("input: {std: [0.0]}", "above 0"),
        ("input: {mean: [0.1, 0.2]}", "give 1 or 3"),
        ("data: {foreground: [1], threshold: 3}", "not both"),
        ("data: {split: {method: file}}", "needs file"),
        ("data: {split: {fold: 7}}", "does not exist"),
        ("model: {encoder_weights: 'https://x/y.pt'}", "#sha256="),
        ("optimizer: {lr: .inf}", "optimizer.lr"),
    ],
)
def test_bad_recipes_are_refused_in_one_line(text: str, needle: str, tmp_path: Path) -> None:
    """Whatever is wrong with a recipe file is told in one line that points at it."""
    path = tmp_path / "bad.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    assert needle in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_win_over_sections_which_win_over_the_file(tmp_path: Path) -> None:
    """The order is file, flags, --set; a changed leaf leaves its neighbours alone."""
    path = tmp_path / "r.yaml"
    path.write_text("train: {epochs: 1, batch_size: 2, seed: 5}", "utf-8")
    recipe = load_recipe(
        path, sections={"train": {"epochs": 10, "batch_size": 20}}, overrides=["train.epochs=100"]
    )
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.seed) == (100, 20, 5)


def test_a_mapping_replaces_what_was_there() -> None:
    """Options and sizes of a recipe can be taken away; a longer path changes one of them."""
    sizes = load_recipe("pet-small").train.progressive
    assert len(sizes) == 2
    assert load_recipe("pet-small", overrides=["train.progressive={}"]).train.progressive == {}
    one = load_recipe("pet-small", overrides=["train.progressive={128: 0.5}"]).train.progressive
    assert one == {128: 0.5}
    assert load_recipe("demo", overrides=["model.options.width=8"]).model.options["width"] == 8
    both = load_recipe("demo", overrides=["train={epochs: 2}", "train.seed=7"]).train
    assert (both.epochs, both.seed) == (2, 7)
    assert both.batch_size == load_recipe("demo").train.batch_size


def test_options_go_with_their_network() -> None:
    """The demo's width of 16 would make a ResNet of a sixteenth of its size, unasked."""
    changed = ["model.name=resnet34-unet"]
    assert load_recipe("demo", overrides=changed).model.options == {}
    narrow = load_recipe("demo", overrides=[*changed, "model.options={width: 32}"])
    assert narrow.model.options == {"width": 32}
    kept = load_recipe("demo", sections={"model": {"name": "unet-small"}})
    assert kept.model.options["width"] == 16


def test_exponents_are_numbers_as_in_yaml_1_2() -> None:
    """`1e-3` is a number, although YAML 1.1 reads it as text."""
    assert load_recipe(overrides=["optimizer.lr=1e-3"]).optimizer.lr == pytest.approx(0.001)


def test_unknown_recipe_and_missing_file_and_binary_file_are_usage_errors(tmp_path: Path) -> None:
    """A name that is not shipped, a file that is absent and one that is not text exit with 2."""
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    for source in ("dem", tmp_path / "absent.yaml", binary):
        with pytest.raises(UsageError) as caught:
            load_recipe(source)
        assert caught.value.exit_code == 2


def test_a_single_channel_recipe_is_complete_with_the_default_normalisation() -> None:
    """`channels: 1` alone gives one mean and one std; three given numbers stay as they are."""
    grey = load_recipe(overrides=["input.channels=1"]).input.preprocessing()
    assert grey.mean == pytest.approx((0.449,))
    assert len(grey.std) == 1
    colour = load_recipe().input.preprocessing()
    assert colour.mean == (0.485, 0.456, 0.406)


def test_none_as_encoder_weights_means_from_scratch() -> None:
    """As a word on the command line, where YAML's null can't be written."""
    given = {"name": "lite0-unet", "encoder_weights": "none"}
    recipe = load_recipe(sections={"model": given})
    assert recipe.model.encoder_weights is None
    assert recipe.input.mean == load_recipe().input.mean


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train:\n  epochs: 3\n  seed: 1\n  epochs: 4\n", "the key epochs stands twice"),
        ("train: {}\ndata: {}\ntrain: {}\n", "the key train stands twice"),
        ("about:\n  summary: 2024-01-01\n", "line 2 holds a timestamp"),
        ("train: !!set {epochs, seed}\n", "line 1 holds a set"),
        (f"train:\n  seed: {'9' * 5000}\n", "a number of 5000 digits"),
    ],
)
def test_yaml_that_means_something_else_is_refused(tmp_path: Path, text: str, told: str) -> None:
    """Nothing of a recipe is dropped in silence, and no value has a type of its own."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(UsageError, match=told):
        load_recipe(path)


def test_a_long_number_of_the_shell_is_refused() -> None:
    """As in a file."""
    with pytest.raises(UsageError, match="a number of 5000 digits"):
        load_recipe(overrides=[f"train.seed={'9' * 5000}"])


def test_what_a_long_value_was_is_cut(tmp_path: Path) -> None:
    """A message stays a line that a person reads, whatever stands in the file."""
    path = tmp_path / "r.yaml"
    path.write_text("about: " + "summary " * 900, "utf-8")
    with pytest.raises(UsageError, match=r"about: .*summary.*\.\.\.\)$") as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 400
