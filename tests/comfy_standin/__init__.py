"""A small stand-in for what steadyflow_comfy asks of ComfyUI, written from its interfaces for tests without it."""
