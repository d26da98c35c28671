"""The data sets, their images, texts, transforms and samplers; nothing about models."""

from datasets.annotations import (
    CLASS_NAMES,
    WITH_TEXTS,
    Sample,
    class_names,
    images_root,
    read_csv,
    read_emotion_roi,
    read_fi,
    read_folder,
    read_ser,
)
from datasets.dataset import BadImage, StickerDataset, build_dataset
from datasets.images import as_rgb, read_image
from datasets.loading import batches, build_loader, worker_death
from datasets.samplers import Draw, EvalBatchSampler, TrainBatchSampler, build_train_sampler
from datasets.text import Tokenizer
from datasets.transforms import build_transform

__all__ = [
    "CLASS_NAMES",
    "WITH_TEXTS",
    "BadImage",
    "Draw",
    "EvalBatchSampler",
    "Sample",
    "StickerDataset",
    "Tokenizer",
    "TrainBatchSampler",
    "as_rgb",
    "batches",
    "build_dataset",
    "build_loader",
    "build_train_sampler",
    "build_transform",
    "class_names",
    "images_root",
    "read_csv",
    "read_emotion_roi",
    "read_fi",
    "read_folder",
    "read_image",
    "read_ser",
    "worker_death",
]
