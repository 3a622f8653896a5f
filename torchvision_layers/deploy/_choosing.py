"""The table of the command that says which format to choose."""

__all__ = ["CHOICES"]

CHOICES = """\
where the file shall run     --output and options                          install here   needs there
---------------------------  --------------------------------------------  -------------  --------------------------
Python, x86 CPU              model.pt2                                                    torch
  in int8, CPU with VNNI     model.pt2 --int8                              pt2e           torch
Python or C++, x86 or ARM    model.pt, --int8 too                                         torch, libtorch
C++ without libtorch's       model.pt2 --format aoti, --int8 too           pt2e, C++      libtorch, CPU of this kind
  interpreter
onnxruntime, any language    model.onnx                                    onnx           onnxruntime
  in int8, every CPU         model.onnx --int8                             onnx, pt2e     onnxruntime
  in int8, x86 with VNNI     model.onnx --int8 --vnni                      onnx, pt2e     onnxruntime
browsers                     model.onnx, --int8 too                        onnx, pt2e     onnxruntime-web
NVIDIA GPU, TensorRT         model.onnx                                    onnx           TensorRT
  in int8                    model.onnx --int8 --backend tensorrt          onnx, pt2e     TensorRT
phones and boards            model.pte, --int8 too                         executorch     ExecuTorch
another torch device, or     model.pt2 --format pt2                                       torch
  to compile it
Names under "install here" are extras, as in pip install "torchvision_layers[onnx,pt2e]", except executorch and a C++
compiler. Formats with int8 in the list need --calibration PATH for it."""
