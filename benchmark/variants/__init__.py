"""Networks that are changed: edits and trainings of a base model, each of which gives a model variant.

    python -m benchmark variant digits-resnet+umap        makes a variant that a model file names, by its recipe

A `Method` (one class, its fields the settings) turns a base model and the suite's training data into an `Edit`, kept as
a folder of an `edit.json` and an `edit.safetensors`. A model entry that names `base` and `edit` is the base with that
edit: a model like any other, known by the hash of its weights, its outputs stored once and scored by every detector.
"""
