"""The modules of the same names in ComfyUI, as far as custom nodes that sample see them."""
