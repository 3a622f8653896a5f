"""
Train, resume, deploy with the reference scripts
================================================

You want to train without writing a loop, stop and go on later, and end with files for several runtimes. The scripts
in ``references/classification`` do that. They need a clone of the repository; this page runs them on the digits of
scikit-learn.
"""

# %%
# Train
# -----
#
# ``--width-mult`` makes the network narrow enough for this page. A recipe in ``references/classification/recipes``
# holds the arguments of each model for longer runs.

import os
import subprocess
import sys
from pathlib import Path

from matplotlib import image, pyplot

REPOSITORY = next(
    folder
    for folder in (Path(os.environ.get("REPOSITORY", ".")).resolve(), *Path.cwd().parents)
    if (folder / "references").is_dir()
)
SCRIPTS = REPOSITORY / "references" / "classification"
# The network is too small for more than one thread.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def run(script: str, *arguments: str, lines: int = 12) -> None:
    """Runs a script and prints its last lines."""
    command = [sys.executable, SCRIPTS / script, *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, check=True)
    for line in result.stdout.splitlines()[-lines:]:
        print(line.replace(f"{SCRIPTS}/", ""))


shared = ["--model", "resnet18", "--width-mult", "0.25", "--image-size", "16", "--output-dir", "run", "--epochs", "4"]

# %%
# A run may be stopped at any time. This one gets the signal of a scheduler that needs the machine, after its first
# epoch:

command = [sys.executable, SCRIPTS / "train.py", *shared]
stopped = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
with stopped:
    for line in stopped.stdout:
        print(line.replace(f"{SCRIPTS}/", ""), end="")
        if line.startswith("epoch 1"):
            stopped.terminate()

# %%
# Resume
# ------
#
# The same command with ``--resume auto`` continues from the last checkpoint. The final weights are bit-equal to those
# of an uninterrupted run. The script writes each checkpoint to a temporary file and then renames it, so a crash during
# a save does not damage the previous checkpoint. The next run resumes from that one.

run("train.py", *shared, "--resume", "auto")

# %%
# The run folder has a log, checkpoints, the model, and pictures:

print(*sorted(path.name for path in Path("run").iterdir()), sep="\n")
figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
axis.imshow(image.imread("run/curves.png"))
axis.axis("off")

# %%
# Int8
# ----

run("train_quantization.py", "--weights", "run/model.pth", "--image-size", "16", "--output-dir", "int8")

# %%
# Deploy
# ------
#
# ``deployment.py`` writes a file for each runtime and compares each with the model; ``evaluate_exported.py`` tests a
# file without this package.

run(
    "deployment.py",
    "--weights",
    "run/model.pth",
    "--image-size",
    "16",
    "--output-dir",
    "files",
    "--files",
    "pt2",
    "onnx",
    "--rounds",
    "3",
)
print(*sorted(path.name for path in Path("files").iterdir()), sep="\n")

# %%
# ``references/classification/README.md`` has the results of every model, and all options.
