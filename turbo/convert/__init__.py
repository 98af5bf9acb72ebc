"""From the files the papers published to folders of named safetensors, once.

checkpoint.py reads a foreign file without running anything in it; unet.py, vae.py, text.py and
adapters.py know where each of our tensors stands there (part.py); difference.py says what does not
fit; plan.py decides what comes of a file; stream.py writes; model.py does all of it for one model.
"""
