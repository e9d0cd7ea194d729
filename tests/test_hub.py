"""Data of the `datasets` library: the same samples as from files, and one line for what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cswap.data.models import ModelSpec
from cswap.data.sources import DataPair, image_format, open_data
from cswap.errors import DataError

datasets = pytest.importorskip("datasets")
SIZE = 8


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def images(classes: tuple[str, ...] = ("cat", "dog"), each: int = 3, hidden: bool = False) -> Any:
    """A split of small images whose colour says the class; `hidden`: all labels are −1."""
    from PIL import Image

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))})
    made = [Image.new("RGB", (SIZE, SIZE), (40 * k + i, 90, 200)) for k in range(len(classes)) for i in range(each)]
    labels = [-1 if hidden else k for k in range(len(classes)) for _ in range(each)]
    return datasets.Dataset.from_dict({"img": made, "label": labels}, features=features)


def saved(tmp_path: Path, **splits: Any) -> str:
    """The spec of a folder that holds these splits."""
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "held"))
    return f"hf:{tmp_path / 'held'}"


def opened(text: str, **given: Any) -> DataPair:
    return open_data(text, image_format(None, SIZE, "0.5", "0.25"), **given)


def test_images_with_a_class_label_are_read_like_those_in_folders(tmp_path: Path) -> None:
    text = saved(tmp_path, train=images(), test=images(each=2))
    for split, part in (("train", images()), ("test", images(each=2))):
        for i, row in enumerate(part):
            folder = tmp_path / "folders" / split / ("cat", "dog")[row["label"]]
            folder.mkdir(parents=True, exist_ok=True)
            row["img"].save(folder / f"{i:03}.png")
    own, files = opened(text), opened(str(tmp_path / "folders"))
    assert own.classes == files.classes == ("cat", "dog")
    for ours, theirs in ((own.train, files.train), (own.evaluation, files.evaluation)):
        assert len(ours) == len(theirs) > 0  # type: ignore[arg-type]
        for i in range(len(theirs)):  # type: ignore[arg-type]
            assert torch.equal(ours[i][0], theirs[i][0])
            assert ours[i][1] == theirs[i][1]
    through = opened(f"hf:{tmp_path / 'folders'}")  # the library reads such folders too
    assert through.classes == files.classes
    assert torch.equal(through.train[0][0], files.train[0][0])


def test_a_test_split_without_labels_is_passed_over(tmp_path: Path) -> None:
    text = saved(tmp_path, train=images(), test=images(hidden=True), validation=images(each=5))
    assert len(opened(text).evaluation) == 10  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"split 'test' hides its labels"):
        opened(text, eval_split="test")
    with pytest.raises(DataError, match=r"expected a split 'nowhere', it has train, test, validation"):
        opened(text, calibration_split="nowhere")


def test_text_takes_the_tokenizer_of_the_model_or_the_users(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3, "film": 4}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    rows = datasets.Dataset.from_dict({"idx": [0, 1], "sentence": ["good film", "bad"], "label": [1, 0]})
    text = saved(tmp_path, train=rows, validation=rows)
    for given in ({"tokenizer": tmp_path / "tokenizer.json"}, {"model_folder": tmp_path}):
        pair = opened(text, **given)
        assert pair.classes == ("0", "1")
        assert [pair.train[i][1] for i in range(2)] == [1, 0]
        assert pair.train[0][0].tolist() == [[2, 4], [1, 1]]
        assert pair.train[1][0].tolist() == [[3, 0], [1, 0]]
    with pytest.raises(DataError, match="text needs a tokenizer"):
        opened(text)


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    pairs = datasets.Dataset.from_dict({"premise": ["a"], "hypothesis": ["b"], "label": [0]})
    two = datasets.Dataset.from_dict(
        {"text": ["a"], "fine": [0], "coarse": [0]},
        features=datasets.Features({
            "text": datasets.Value("string"), "fine": datasets.ClassLabel(names=["x"]), "coarse": datasets.ClassLabel(names=["y"]),
        }),
    )  # fmt: skip
    (tmp_path / "empty").mkdir()
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "code.py").write_text("open('/tmp/never', 'w')")
    for name, part in (("pairs", pairs), ("two", two), ("alone", images())):
        datasets.DatasetDict({"train": part}).save_to_disk(str(tmp_path / name))
    datasets.DatasetDict({"train": pairs, "test": pairs}).save_to_disk(str(tmp_path / "tested"))
    images().save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": images(), "test": images(("dog", "cat"))}).save_to_disk(str(tmp_path / "turned"))
    for name, said in (
        ("tested", "expected images, or one column of text .*, got text columns premise, hypothesis"),
        ("two", "expected one column of class labels .*, got fine, coarse"),
        ("alone", "expected a labelled split test or validation .*, it has train"),
        ("one", "expected a dataset with splits"),
        ("turned", r"different classes, 2 \(cat, dog\) and 2 \(dog, cat\)"),
        ("empty", "the folder is empty"),
        ("code", "hf:.*code"),
        ("nowhere", "no such folder"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            opened(f"hf:{tmp_path / name}")
        assert "\n" not in str(caught.value), name
    with pytest.raises(DataError, match="expected hf:NAME_OR_DIR"):
        opened("hf:")
    assert not Path("/tmp/never").exists()


def test_a_broken_image_names_its_number(tmp_path: Path) -> None:
    broken = images().cast_column("img", datasets.Image(decode=False))
    broken = broken.map(
        lambda row, i: {"img": {"bytes": b"no image" if i == 1 else row["img"]["bytes"], "path": None}},
        with_indices=True,
    )
    text = saved(tmp_path, train=broken.cast_column("img", datasets.Image()), test=images())
    with pytest.raises(DataError, match="image 1 of the dataset cannot be read"):
        opened(text).train[1]


def test_tokens_of_an_image_models_folder_are_not_asked_for(tmp_path: Path) -> None:
    """A folder of a Hugging Face image model with image folders beside it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=SIZE, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "model")
    from cswap.pipeline.jobs import DataChoice

    text = saved(tmp_path, train=images(), test=images())
    pair = DataChoice(text=text).open(ModelSpec.parse(f"hf:{tmp_path / 'model'}"))
    assert pair.classes == ("cat", "dog")
    with pytest.raises(DataError, match="tokenizer and max-length go with text"):
        DataChoice(text=text, max_length=8).open(ModelSpec.parse(f"hf:{tmp_path / 'model'}"))
