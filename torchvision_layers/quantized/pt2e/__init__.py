"""The engine on exported graphs: a graph of operators, quantized by torchao."""
