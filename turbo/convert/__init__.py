"""Convert published files into folders of named safetensors.

checkpoint.py opens a published file without running anything in it. unet.py, vae.py, text.py and
adapters.py map its tensors to ours (part.py). difference.py reports what does not match. plan.py
decides which folders a file produces, stream.py writes them, model.py converts a whole model.
"""
