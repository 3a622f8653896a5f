"""Code that the scripts share.

``data``, ``runs``, ``cli``, ``settings`` and ``training.evaluation`` do not import ``torchvision_layers``, so that
``evaluate_exported.py`` can test exported models without it.
"""
