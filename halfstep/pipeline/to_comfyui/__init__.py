"""A student as ComfyUI reads it: the original checkpoint's tensors and a workflow."""
