"""Trains a reference model, or tests a trained one.

python references/classification/train.py --model resnet18 --image-size 32 --output-dir outputs/resnet18
torchrun --nproc-per-node 2 --max-restarts 3 references/classification/train.py --model resnet18 --resume auto
python references/classification/train.py @references/classification/recipes/resnet18.txt
"""

from argparse import ArgumentParser, Namespace
from typing import Any

from common import distributed
from common.cli import check_training_options, run_as_script, training_parser
from common.data.loading import load_data, skipped_images
from common.runs.restore import load_trained
from common.runs.signals import StopRequest
from common.settings import ModelCard, TrainingSettings
from common.training.evaluation import evaluate
from common.training.run import train


def get_parser() -> ArgumentParser:
    return training_parser(__doc__)


def main(args: Namespace) -> dict[str, Any]:
    """Trains or tests a model.

    Returns:
        ``history``, one entry per epoch with loss and accuracy on both sets, and the final ``test_accuracy``.
    """
    check_training_options(args)
    settings = TrainingSettings.from_args(args)
    return test(settings) if args.test_only else train(settings)


def test(settings: TrainingSettings) -> dict[str, Any]:
    """Tests the model with the weights of ``settings``."""
    with distributed.process_group(settings.compute.device) as device, StopRequest():
        _, loader, classes = load_data(settings.data, device)
        card = ModelCard(
            settings.model.model, settings.data.dataset, settings.data.image_size, classes, settings.data.normalization
        )
        model = load_trained(settings.checkpoints.weights, card).to(device)
        accuracy = evaluate(model, loader, len(classes), device=device).accuracy
        skipped = skipped_images(loader)
        if distributed.rank() == 0:
            print(f"{card.model_name}: test accuracy {accuracy:.2%}{skipped}")
        return {"history": [], "test_accuracy": accuracy}


if __name__ == "__main__":
    run_as_script(main, get_parser().parse_args())
