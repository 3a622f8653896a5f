"""The table of the command that says which format to choose."""

__all__ = ["CHOICES"]

CHOICES = """\
where the file shall run     --output and options                  install here       needs there         time   size
---------------------------  ------------------------------------  -----------------  ------------------  -----  ----
Python, x86 CPU              model.pt2                                                torch               0.69   1.0
  in int8, with VNNI         model.pt2 --int8                      [pt2e]             torch               0.22   0.25
Python or C++, any CPU       model.pt                                                 torch or libtorch   0.96   1.0
  in int8                    model.pt --int8                                          torch or libtorch   0.22   0.25
C++, one kind of CPU         model.pt2 --format aoti [--int8]      [pt2e], compiler   libtorch
onnxruntime, any language    model.onnx                            [onnx]             onnxruntime         0.68   1.0
  in int8, every CPU         model.onnx --int8                     [onnx,pt2e]        onnxruntime                0.25
  in int8, x86 with VNNI     model.onnx --int8 --vnni              [onnx,pt2e]        onnxruntime                0.25
NVIDIA GPU                   model.onnx                            [onnx]             TensorRT
  in int8                    model.onnx --int8 --backend tensorrt  [onnx,pt2e]        TensorRT                   0.25
Intel CPU or GPU             model.xml [--int8]                    [openvino,pt2e]    OpenVINO
browsers                     model.onnx [--int8]                   [onnx,pt2e]        onnxruntime-web
phones and boards            model.pte [--int8]                    executorch         ExecuTorch
Android, microcontrollers    model.tflite                          [litert]           LiteRT
iOS, macOS                   model.mlpackage [--int8]              [coreml,pt2e]      Core ML
to compile, or another       model.pt2 --format pt2 [--int8]       [pt2e]             torch
  device of torch
Time and size of a ResNet-50 are relative to eager mode and its state_dict: one image, one thread, a CPU with VNNI.
Names in brackets are extras: pip install "torchvision_layers[onnx,pt2e]". All files load with deploy.load(path) too.\
"""
