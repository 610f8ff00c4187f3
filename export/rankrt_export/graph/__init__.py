"""Writing an ONNX graph node by node, and the files that hold its weights. Knows no model."""
