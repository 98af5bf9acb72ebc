"""The networks: video UNet, Wan's transformer, LoRA, text encoders, VAEs."""
