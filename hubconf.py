"""The networks by name for torch.hub:

model = torch.hub.load("FOLDER", "lora_v", source="local", num_classes=7)
predictor = torch.hub.load("FOLDER", "predictor", source="local")
"""

dependencies = ["torch", "torchvision", "timm", "pytorch_pretrained_bert"]

import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
OWN = ("datasets", "engine", "inference", "models", "readers", "runtime", "utils")


def _use_own_modules() -> None:
    """Makes the project's modules importable, for what is loaded later too.

    Raises:
        ImportError: the caller has loaded, or would load, other modules of the same names.
    """
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))  # torch.hub takes the folder off the path again once this file is loaded
    for name in OWN:
        loaded = sys.modules.get(name)
        spec = loaded.__spec__ if loaded else importlib.util.find_spec(name)
        places = [spec.origin or "", *(spec.submodule_search_locations or [])] if spec else []
        if not any(place and Path(place).resolve().is_relative_to(ROOT) for place in places):
            raise ImportError(
                f"{name}: expected the module of {ROOT}, found another ({places[0] if places else 'none'}): "
                "load LORA in a process of its own, or before that module"
            )


_use_own_modules()

from runtime.surroundings import give_home

give_home()  # before the networks' packages are imported


def lora(**settings: Any) -> Any:
    """LORA with its initial values; `settings`: see `models.lora.build_lora`."""
    return _create("lora", settings)


def lora_v(**settings: Any) -> Any:
    """LORA-V with its initial values; `settings`: see `models.lora.build_lora_v`."""
    return _create("lora_v", settings)


def pvt(**settings: Any) -> Any:
    """PVT as a classifier with its initial values; `settings`: see `models.pvt.build_pvt`."""
    return _create("pvt", settings)


def predictor(checkpoint: str = str(ROOT / "weights" / "lora_v_demo.pth"), **settings: Any) -> Any:
    """A trained network for pictures, the shipped one by default; see `inference.predictor.load_predictor`."""
    _use_own_modules()
    from inference.predictor import load_predictor

    return load_predictor(checkpoint, **settings)


def _create(name: str, settings: dict[str, Any]) -> Any:
    _use_own_modules()
    from models import create_model

    return create_model(name, **settings)
