"""How to make the tensor that a model takes from a value that is none, or that has another dtype."""

from torch import Tensor

__all__ = ["remedy"]


def remedy(value: object) -> str:
    """The code that makes a float32 tensor from ``value``, to be added to an error; empty if there is none."""
    if not isinstance(value, Tensor):
        return _of_object(value)
    if value.is_floating_point():
        return ": convert it with .float()"
    if value.is_complex():
        return ""
    if value.dim() <= 1:
        return ": labels come after images, (images, labels)"
    return ": scale and normalize it as in training, at least with .float() / 255"


def _of_object(value: object) -> str:
    names = {f"{cls.__module__}.{cls.__name__}" for cls in type(value).__mro__}  # the packages may be missing
    if "numpy.ndarray" in names:
        return ": convert it with torch.from_numpy(array).float()"
    if "PIL.Image.Image" in names:
        return (
            ": convert it with torchvision.transforms.functional.to_tensor(image)[None], and normalize as in training"
        )
    if "torch.utils.data.dataloader.DataLoader" in names:
        return ": the images of a batch are mostly next(iter(loader))[0]"
    if isinstance(value, list) and value and all(isinstance(item, Tensor) for item in value):
        return ": pass the tensor in it that the model takes"
    return ""
