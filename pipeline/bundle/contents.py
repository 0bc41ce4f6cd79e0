"""Files of a MONAI bundle of a model: its configuration, its metadata and the schema of the metadata."""

from importlib import metadata
from typing import Any

from ...data_manifests.terms import BIDS_SUFFIX
from ..model.anomaly_model import AnomalyModel
from ..model.model_card import model_facts
from ..model.pack_file import About

MODEL = "models/model.voxout"
CONFIGURATION, METADATA, SCHEMA = "configs/inference.json", "configs/metadata.json", "configs/schema.json"
README = "docs/README.md"
_PACKAGE = "voxout.pipeline.bundle"
_SCHEMA_OF_MONAI = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
_CHANGES = {"0.1.0": "first version"}
_DEVICE = "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')"


def configuration() -> dict[str, Any]:
    """Return the configuration of inference; the same for every model."""
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/maps'",
        "device": _DEVICE,
        "network_def": {
            "_target_": f"{_PACKAGE}.network.AnomalyNetwork",
            "model": f"$@bundle_root + '/{MODEL}'",
            "device": "@device",
        },
        "preprocessing": {
            "_target_": f"{_PACKAGE}.transforms.PrepareScand",
            "keys": "t1w",
            "model": "$@network_def.model",
        },
        "dataset": {
            "_target_": f"{_PACKAGE}.scans.PreparedScans",
            "folder": "@dataset_dir",
            "transform": "@preprocessing",
            "output_dir": "@output_dir",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": f"{_PACKAGE}.transforms.SaveAnomalyMapd",
            "keys": "pred",
            "model": "$@network_def.model",
            "output_dir": "@output_dir",
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network_def",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
        "finalize": ["$@dataset.end()"],
    }


def meta(model: AnomalyModel, about: About) -> dict[str, Any]:
    """Return the metadata: what MONAI asks for, and the facts of the model card."""
    channels = model.source.channels.names
    images = " and ".join(BIDS_SUFFIX[name] for name in model.config.preprocessing.modalities)
    versions = {name: metadata.version(name) for name in ("monai", "torch", "numpy", "voxout")}
    return {
        "schema": _SCHEMA_OF_MONAI,
        "version": "0.1.0",
        "changelog": _CHANGES,
        "monai_version": versions["monai"],
        "pytorch_version": versions["torch"].partition("+")[0],
        "numpy_version": versions["numpy"],
        "required_packages_version": {"voxout": versions["voxout"]},
        "name": "Anomaly maps of brain MRI",
        "task": "Unsupervised anomaly detection in brain MRI",
        "description": "Turns a head scan into a map of z-scores, higher where it differs from healthy controls.",
        "authors": "made by voxout from the model of a site",
        "copyright": f"licence of the model: {about.licence or 'not stated'}",
        "data_source": f"{about.controls} healthy scans of the site that fitted it",
        "data_type": "nifti",
        "image_classes": f"{images} head scans, of any orientation and resolution",
        "label_classes": "none",
        "pred_classes": "z-scores of a normal distribution; one healthy voxel in a thousand exceeds 3.09",
        "intended_use": "Research use only: not a medical device.",
        "references": ["https://arxiv.org/abs/2507.21164"],
        "model_facts": model_facts(model, about),
        "limits": [
            "Scans of another scanner can score higher: adapt the model to it with voxout adapt-scanner.",
            "Age and sex of a scan are not known here; a model that knows them takes the mean of its controls.",
        ],
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "MR",
                    "num_channels": len(channels) + 1,
                    "spatial_shape": list(model.mask.grid.size_vox),
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": dict(enumerate((*channels, "brain mask"))),
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "anomaly scores",
                    "num_channels": 2,
                    "spatial_shape": list(model.mask.grid.size_vox),
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {"0": "z-score", "1": "scored"},
                }
            },
        },
    }


def schema() -> dict[str, Any]:
    """Return a JSON schema of the metadata, for MONAI's `verify_metadata` where there is no internet."""
    text, version = {"type": "string", "minLength": 1}, {"type": "string", "pattern": r"^[0-9]+\.[0-9]+(\.|$)"}
    image = {
        "type": "object",
        "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "channel_def"],
        "properties": {
            "num_channels": {"type": "integer", "minimum": 1},
            "spatial_shape": {"type": "array", "minItems": 3, "items": {"type": "integer", "minimum": 1}},
            "dtype": text,
            "channel_def": {"type": "object"},
        },
    }
    sides = {"inputs": "image", "outputs": "pred"}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "required": [
            *("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"),
            *("required_packages_version", "task", "description", "authors", "copyright", "network_data_format"),
        ],
        "properties": {
            **dict.fromkeys(("schema", "task", "description", "authors", "copyright"), text),
            **dict.fromkeys(("version", "monai_version", "pytorch_version", "numpy_version"), version),
            "changelog": {"type": "object", "additionalProperties": text},
            "required_packages_version": {"type": "object", "additionalProperties": text},
            "network_data_format": {
                "type": "object",
                "required": list(sides),
                "properties": {
                    side: {"type": "object", "required": [name], "properties": {name: image}}
                    for side, name in sides.items()
                },
            },
        },
    }
