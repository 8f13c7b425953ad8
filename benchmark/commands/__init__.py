"""The subcommands of `ood-benchmark` and of `python -m benchmark`, one module each.

A command takes what the command line says, calls the library and prints; what goes wrong, the library raises. At its
top a command imports nothing that is slow to load (torch, timm, datasets, pydantic), so that help and the completion
of a shell are quick; it imports the library when it runs.
"""
