"""The data sets, a row each: which function reads one, and which of the settings that are not for all it reads."""

from __future__ import annotations

from dataclasses import dataclass

IN_MEMORY = ("holdout", "augment", "crop_padding", "cutout_size", "cutout_probability", "label_noise")


@dataclass(frozen=True)
class Source:
    """One data set.

    Args:
        place: of the function or class that makes it, module:name under llqr_sam_ref.train.data.
        reads: settings that it reads and others do not.
    """

    place: str
    reads: tuple[str, ...] = ()


SOURCES: dict[str, Source] = {
    "digits": Source("digits:load", IN_MEMORY),
    "mnist": Source("idx:load", (*IN_MEMORY, "data_path", "download")),
    "fashion-mnist": Source("idx:load", (*IN_MEMORY, "data_path", "download")),
    "cifar10": Source("cifar:load", (*IN_MEMORY, "data_path", "download")),
    "cifar100": Source("cifar:load", (*IN_MEMORY, "data_path", "download")),
    "imagenet": Source("folder:load", ("data_path",)),
    "modular": Source("tokens:TableData"),
    "text": Source("tokens:load_text", ("data_path",)),
    "parallel": Source("parallel:load", ("data_path",)),
    "pairs": Source("pairs:load", ("label_noise",)),
}
