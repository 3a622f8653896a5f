"""Models of torchvision and timm through folding, quantizing and exporting, each beside torch alone."""
