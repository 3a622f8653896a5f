"""The groups of each package, in the order in which a model or a layer passes through them."""

from .maps import Group, PackageMap

__all__ = ["PACKAGE_MAPS"]

#: By the name of the drawing.
PACKAGE_MAPS: dict[str, PackageMap] = {
    "package_utils": PackageMap(
        "_utils",
        [
            [
                Group("Arguments and models", "checks model_checks construct"),
                Group("Inputs, outputs", "inputs input_remedies failed_runs empty_batches outputs structure"),
                Group("Single modules", "modules successor hooked_weights graph_modules"),
            ],
            [
                Group(
                    "How a forward uses its modules",
                    "tracing proxy side_effects tensor_writes data_flow chains forward_graphs recorded_forwards "
                    "source_lines",
                ),
                Group("The same result from other modules", "plain/ folded_forms scaling row_blocks"),
            ],
            [
                Group(
                    "Exported programs", "exporting safe_names size_limit symbolic_lengths symbolic_grids data_reads"
                ),
                Group("Files and commands", "atomic command importing progress quiet"),
                Group("Processors", "amx"),
            ],
        ],
        flow=False,
    ),
    "package_source": PackageMap(
        "_source",
        [
            [Group("Read", "module references sources")],
            [Group("Collect what a definition needs", "collecting")],
            [Group("Rewrite names, order, format", "rewriting ordering formatting")],
        ],
    ),
    "package_layers": PackageMap(
        "layers",
        [
            [
                Group("Convolutions", "conv same_conv depthwise checked_conv weight_standardization positional_conv"),
                Group("Norms and scales", "frozen_batch_norm layer_norm global_response_norm channel_cap"),
                Group("Linear layers", "linear mlp"),
            ],
            [
                Group("Attention", "squeeze_excitation"),
                Group("Branches", "stochastic_depth stochastic_depth_schedule"),
                Group("Order of dimensions", "permute"),
            ],
            [Group("Blocks made of them", "residual inverted_residual universal_inverted_bottleneck mbconv convnext")],
            [Group("Sizes from the first batch", "lazy"), Group("Models that are built already", "replacement")],
        ],
        flow=False,
    ),
    "package_experimental": PackageMap(
        "experimental/nn",
        [
            [
                Group(
                    "Images", "coord_conv rep_conv spatial_attention se_block layer_norm universal_inverted_bottleneck"
                ),
                Group("Tokens", "patch_embedding attention transformer_block gated_mlp _tokens _native_attention"),
            ],
            [
                Group("Windows", "window_attention swin_block patch_merging _windows _version"),
                Group("Pyramids", "feature_pyramid path_aggregation concatenation _levels"),
            ],
            [
                Group("Necks and decoders", "csp_block sppf aspp up_block"),
                Group("Positions, heads", "position_embedding classifier_head"),
                Group("Promoted: old names", "_promoted global_response_norm weight_standardization"),
            ],
        ],
        flow=False,
    ),
    "package_quantized": PackageMap(
        "quantized",
        [
            [Group("Public functions", "api settings batches")],
            [Group("Find problems before calibration", "checks state_kinds exclusion precision finite")],
            [
                Group("An engine prepares, calibrates, converts", "engine eager/ pt2e/ wrapper"),
                Group("Quantizable twins", "layers/ joining"),
            ],
            [
                Group("Ranges of activations", "ranges range_search range_choice steps"),
                Group("Weights and biases", "pairs gptq bias_correction norm_gains"),
            ],
            [Group("Compare with the float model", "verification rounding lockstep measurement")],
            [
                Group("Report", "report report_row"),
                Group("Leave modules out until it is good enough", "tolerance sensitivity trial"),
            ],
        ],
    ),
    "package_eager": PackageMap(
        "quantized/eager",
        [
            [Group("Run the model once", "first_run call_checks hooks calls result_sizes")],
            [Group("Refuse what cannot become int8", "problems support excluded")],
            [
                Group(
                    "Operations become modules",
                    "rewritten_copy rewriting operations float_values in_place repeated_calls",
                ),
                Group("A forward in float", "float_forwards attention weight_token"),
            ],
            [Group("Fuse", "fusing fusion patterns post_ops")],
            [Group("Calibrate, train, convert", "workflow bias_correction torch_ao/")],
            [
                Group("Run", "model wrappers stubs int8_modules int8_arithmetic int8_pools flat_sequential"),
                Group("Report", "report measuring"),
            ],
        ],
    ),
    "package_pt2e": PackageMap(
        "quantized/pt2e",
        [
            [Group("Export for all sizes", "export signature sizes fixed_sizes batch_sizes size_branches")],
            [Group("Rewrite the graph", "regions passes writes constants weights nodes")],
            [Group("Refuse what cannot become int8", "problems training_checks")],
            [
                Group("Place quantization, calibrate, convert", "workflow torchao quantizers tensorrt"),
                Group("Biases", "bias_correction bias_steps"),
            ],
            [Group("Run", "model rounding_checks"), Group("Report", "report measuring")],
        ],
    ),
    "package_deploy": PackageMap(
        "deploy",
        [
            [
                Group("Command", "_cli _choosing _checkpoint _named_model _photographs _int8_options"),
                Group("Inputs of one call", "_example _inputs _signature _subject"),
            ],
            [Group("Fold and equalize", "fold equalize folding/"), Group("Lower", "lower lowering/")],
            [Group("Write", "export formats/ _metadata")],
            [Group("Compare with the model", "_comparison _running")],
            [Group("Verify and load", "integrity/ load")],
        ],
    ),
    "package_formats": PackageMap(
        "deploy/formats",
        [
            [Group("Which formats exist", "table format"), Group("Shared", "program")],
            [
                Group("torch", "pt2 lowered packing graph aoti torchscript tracing"),
                Group("Other runtimes", "onnx openvino litert coreml executorch"),
            ],
            [
                Group("Sizes that a file accepts", "size_rules size_reads onnx_sizes"),
                Group("Operators that ONNX lacks", "onnx_pools onnx_attention onnx_rewriting"),
            ],
        ],
        flow=False,
    ),
    "package_lowering": PackageMap(
        "deploy/lowering",
        [
            [Group("Clean the graph", "cleaning aliasing guards")],
            [Group("Fewer, larger operators", "scaling pixels fusion post_ops int8 bfloat16")],
            [Group("Memory", "layout packing in_place")],
            [Group("A program of steps", "steps program source tracing nan_checks model")],
            [Group("Operators that it calls", "kernels int8_kernels amx_sizes")],
        ],
    ),
    "package_standalone": PackageMap(
        "standalone",
        [
            [Group("Command and function", "write")],
            [Group("Name the definitions (collected by _source)", "_naming _substitutes")],
            [Group("Source that takes the place of packages", "_bases _twins")],
            [Group("Text of the file", "_file _header _docstrings")],
        ],
    ),
    "package_testing": PackageMap(
        "testing",
        [
            [Group("Your layer and its samples", "_spec")],
            [Group("Cases: check × sample × variant", "_case _check _modes")],
            [Group("The checks", "_checks/")],
            [Group("Report, or an error", "_check_layer")],
        ],
    ),
}
