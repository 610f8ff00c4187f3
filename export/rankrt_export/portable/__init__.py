"""The portable export: plain ONNX in the layout of files that other runtimes and libraries expect.

graphs   one graph file for each precision
passes   graphs in an older opset, without operators that few runtimes have
compare  a graph's logits beside PyTorch's
folder   the files beside the graphs, and the model card
export   the order of the steps
"""
