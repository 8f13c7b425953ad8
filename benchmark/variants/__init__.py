"""Variants: changed networks. Each is a base model that a method edited or trained further.

    python -m benchmark variant digits-resnet+umap        makes a variant that a model file names, by its recipe

A `Method` is a class whose fields are its settings. From a base model and the suite's training data it makes an `Edit`,
which is written as a folder with an `edit.json` and an `edit.safetensors`. A model entry with `base` and `edit` is the
base model with this edit. It is used like any other model: the hash of its weights identifies it, its outputs are
stored once, and every detector scores them.
"""
