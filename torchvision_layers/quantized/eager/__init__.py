"""The engine on torch eager mode: a model of modules, with int8 modules of ``torch.ao`` and of this package."""
