"""What the matrix knows of each layer, one file a family; ``layer_specs`` gathers them."""
