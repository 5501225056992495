"""steadyflow in the tools people already use: diffusers and k-diffusion. Nothing is imported until it is asked for."""
